"""Optimizers of bitsandbytes, which is not installed here."""

import importlib.util

import pytest

from nested_reft.config.sections import Sft
from nested_reft.errors import UserError
from nested_reft.model.optim import check_optim

PAGED = Sft(optim="paged_adamw_8bit")


def test_adamw_of_torch_runs_everywhere():
    assert check_optim(Sft(), "sft", has_gpu=False) == "adamw_torch"


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        (None, "needs bitsandbytes, which is not installed; `pip install .[bitsandbytes]`, or"),
        ("a spec", "needs an NVIDIA GPU, which the job does not have; take one (jobs.gpus), or"),
    ],
)
def test_an_optimizer_that_cannot_run_is_one_sentence(installed, words, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    with pytest.raises(UserError) as refusal:
        check_optim(PAGED, "sft", has_gpu=False)
    assert str(refusal.value) == f"sft.optim is 'paged_adamw_8bit', which {words} set it to adamw_torch"


def test_bitsandbytes_with_a_gpu_is_accepted(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "a spec")
    assert check_optim(PAGED, "sft", has_gpu=True) == "paged_adamw_8bit"


def test_bitsandbytes_is_refused_where_weights_are_sharded(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "a spec")
    assert check_optim(PAGED, "sft", has_gpu=True, distributed="ddp") == "paged_adamw_8bit"
    with pytest.raises(UserError, match=r"^sft\.optim is .*, which cannot update the weights that FSDP2 shards; set "):
        check_optim(PAGED, "sft", has_gpu=True, distributed="fsdp")
