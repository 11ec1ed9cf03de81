"""The check of a model before it is sampled from can fail, and says why it does."""

import pytest
import torch

from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.self_check import unsupported_reason
from tests.model.families import PROMPTS, build
from tests.rollout.reference import GREEDY


def test_a_model_that_does_not_run_is_named():
    assert unsupported_reason(RolloutEngine(build("bloom")), PROMPTS, GREEDY).startswith(
        "BloomForCausalLM does not run in the engine"
    )


@pytest.mark.parametrize("wrong", [0.0, torch.nan])
def test_a_wrong_attention_mask_is_noticed(wrong, monkeypatch):
    """Attention reads columns that a row has not written yet, or only NaN."""
    monkeypatch.setattr(
        RolloutEngine,
        "attention_masks",
        lambda self, positions: torch.full((1, 1, 1, positions.attended_columns), wrong),
    )
    engine = RolloutEngine(build("llama"))
    reason = unsupported_reason(engine, PROMPTS, GREEDY, skipped=[1])
    assert reason == "LlamaForCausalLM gets other log-probabilities in the engine than in a full forward"
