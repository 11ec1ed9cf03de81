"""Weight files: counted from their headers, and refused where they are missing, of another kind or incomplete."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from nested_reft.errors import UserError
from nested_reft.model.weights import count_parameters
from tests.conftest import TINY


@pytest.fixture()
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def test_parameters_are_those_of_the_model(folder):
    model = AutoModelForCausalLM.from_pretrained(TINY)
    assert count_parameters(folder) == sum(parameter.numel() for parameter in model.parameters())
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert count_parameters(folder) == count_parameters(TINY)


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_gguf(folder):
    (folder / "model.safetensors").rename(folder / "x.gguf")


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 13476\n")


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lost_shard(folder):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (only_bin, "has its weights only as pytorch_model.bin, but only safetensors are read"),
        (
            only_gguf,
            r"has its weights only as x.gguf; run `nested-reft prepare gguf .*/model/x.gguf`, and give the folder",
        ),
        (pointer, r"model.safetensors is not a file of weights \(54 bytes\)"),
        (cut_off, "is cut off: it has "),
        (lost_shard, "lacks the weights model-1.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks the weights model.safetensors"),
    ],
)
def test_weights_that_cannot_be_read_are_refused(damage, words, folder):
    damage(folder)
    with pytest.raises(UserError, match=words):
        count_parameters(folder)
