"""Loading a model and its tokenizer."""

import json
import shutil

import pytest
import torch

from nested_reft.errors import UserError
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
    with pytest.raises(UserError, match="only safetensors are read"):
        load_model(folder, "float32")


def test_a_git_lfs_pointer_in_the_place_of_weights_is_refused(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"is not a file of weights .*git lfs pull"):
        load_model(folder, "float32")


def without_files(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def without_end(folder):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"eos_token": None}))


def of_another_model(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 20}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_files, "has no tokenizer that can encode text; copy the files of its base model"),
        (without_end, "names no token that ends a text; set `eos_token`"),
        (of_another_model, "has 487 tokens, but the model knows 20"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(damage, words, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=words):
        load_model(folder, "float32")


def test_the_end_tokens_are_the_models_or_the_tokenizers():
    model, tokenizer = load_model(TINY, "float32")
    for ends, expected in ((5, (5,)), ([5, 6], (5, 6)), (None, (tokenizer.eos_token_id,))):
        model.generation_config.eos_token_id = ends
        assert end_token_ids(model, tokenizer) == expected
