"""Loading a model and its tokenizer."""

import shutil

import pytest
import torch

from nested_reft.model.loading import end_token_ids, load_model
from tests.conftest import TINY


def test_weights_have_the_type_that_is_asked_for():
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = load_model(TINY, dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert tokenizer.pad_token_id is not None


def test_a_pickle_is_never_loaded(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder, "float32")


def test_the_end_tokens_are_the_models_or_the_tokenizers():
    model, tokenizer = load_model(TINY, "float32")
    for ends, expected in ((5, (5,)), ([5, 6], (5, 6)), (None, (tokenizer.eos_token_id,))):
        model.generation_config.eos_token_id = ends
        assert end_token_ids(model, tokenizer) == expected
