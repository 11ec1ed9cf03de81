"""Forwards in float32 compute with the weights as they are, and leave them as they are."""

import copy

import pytest
import torch

from nested_reft.model.precision import in_float32
from nested_reft.rollout.self_check import completion_logps
from tests.model.families import PROMPTS, build


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "opt", "gpt_neox", "mixtral"])
def test_forwards_in_float32_use_the_rounded_weights_and_leave_them_as_they_are(family):
    rounded = build(family).to(torch.bfloat16)
    exact = completion_logps(copy.deepcopy(rounded).float(), PROMPTS, PROMPTS)
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in rounded.named_parameters()}
    with in_float32(rounded):
        assert torch.equal(completion_logps(rounded, PROMPTS, PROMPTS), exact)
    assert not torch.equal(completion_logps(rounded, PROMPTS, PROMPTS), exact)
    for name, weight in rounded.named_parameters():
        address, values = before[name]
        assert weight.data_ptr() == address and torch.equal(weight, values), name
