"""The check of a model before it is sampled from refuses an engine with a fault, never a right one, and says why."""

import itertools

import pytest
import torch

from nested_reft.embedded.problems import generate
from nested_reft.model.loading import load_model
from nested_reft.model.precision import in_float32
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.self_check import completion_logps, unsupported_reason
from nested_reft.rollout.token_sampling import SamplingParams
from tests.conftest import ROOT, SMOLLM2, needs_smollm2
from tests.model.families import PROMPTS, build
from tests.rollout.reference import GREEDY

EMBEDDED = ROOT / "nested_reft" / "embedded"
SAMPLING = SamplingParams(max_new_tokens=16)


class PositionsOffByOne(RolloutEngine):
    def decode_step(self, tokens):
        forward = self.model.forward
        self.model.forward = lambda **kwargs: forward(**kwargs | {"position_ids": kwargs["position_ids"] + 1})
        try:
            return super().decode_step(tokens)
        finally:
            del self.model.forward


class MaskSeesPadding(RolloutEngine):
    def attention_masks(self, positions):
        mask = super().attention_masks(positions)
        return torch.ones_like(mask) if mask.dtype == torch.bool else torch.zeros_like(mask)


class SkipsFirstLayer(RolloutEngine):
    def layers_replaced(self, skipped):
        return super().layers_replaced([0, *skipped])


class KeysOfAnEarlierRollout(RolloutEngine):
    is_filled = False

    def prefill(self, prompts, rows):
        if not self.is_filled:
            super().prefill(prompts, rows)
        self.is_filled = True


class WeightsOfAnEarlierRollout(RolloutEngine):
    is_synchronized = False

    def sync_weights(self):
        if not self.is_synchronized:
            super().sync_weights()
        self.is_synchronized = True


FAULTS = [PositionsOffByOne, MaskSeesPadding, SkipsFirstLayer, KeysOfAnEarlierRollout]
MODELS = [
    EMBEDDED / "tiny-28",
    EMBEDDED / "wide-20",
    pytest.param(SMOLLM2, marks=[pytest.mark.slow, pytest.mark.nightly, needs_smollm2]),
]
DTYPES = ["float32", "bfloat16"]


def prompts_of_tries(tokenizer):
    """Yield the prompts of one try after the other: four generated problems, four completions of each."""
    prompts = tokenizer([row.problem for row in generate("mixed", "train", 200, seed=0)])["input_ids"]
    for start in range(0, len(prompts), 4):
        yield [prompt for prompt in prompts[start : start + 4] for _ in range(4)]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("folder", MODELS)
def test_a_fault_is_refused(folder, dtype, fault):
    model, tokenizer = load_model(folder, dtype)
    reason = unsupported_reason(fault(model.eval()), next(prompts_of_tries(tokenizer)), SAMPLING)
    assert "gets other log-probabilities in the engine than in a full forward" in str(reason)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("folder", MODELS)
def test_a_right_engine_is_not_refused(folder, dtype):
    model, tokenizer = load_model(folder, dtype)
    assert unsupported_reason(RolloutEngine(model.eval()), next(prompts_of_tries(tokenizer)), SAMPLING) is None


@pytest.mark.slow
@pytest.mark.nightly  # the tests above take a few tries without compilation
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("folder", MODELS)
def test_fifty_right_compiled_engines_are_not_refused_and_faults_are(folder, dtype):
    model, tokenizer = load_model(folder, dtype)
    engine = RolloutEngine(model.eval(), compiled=True)
    assert [unsupported_reason(engine, prompts, SAMPLING) for prompts in prompts_of_tries(tokenizer)] == [None] * 50
    for fault in FAULTS:
        engine.__class__ = fault
        for prompts in itertools.islice(prompts_of_tries(tokenizer), 10):
            assert unsupported_reason(engine, prompts, SAMPLING) is not None, fault


def test_weights_of_an_earlier_rollout_are_refused(small_model):
    engine = WeightsOfAnEarlierRollout(small_model, dtype=torch.bfloat16)
    assert unsupported_reason(engine, PROMPTS, SAMPLING) is None
    with torch.no_grad():
        small_model.model.layers[2].mlp.up_proj.weight += 1e-2
    assert unsupported_reason(engine, PROMPTS, SAMPLING) == (
        "Qwen2ForCausalLM has other weights in the engine than in the model"
    )


def test_autocast_of_a_trainer_is_rounding_too(small_model):
    exact = completion_logps(small_model, PROMPTS, PROMPTS)
    small_model.forward = torch.autocast("cpu", torch.bfloat16)(small_model.forward)
    assert not torch.allclose(completion_logps(small_model, PROMPTS, PROMPTS), exact, atol=1e-3)
    with in_float32(small_model):
        assert torch.allclose(completion_logps(small_model, PROMPTS, PROMPTS), exact, atol=1e-5)
    assert unsupported_reason(RolloutEngine(small_model), PROMPTS, SAMPLING) is None


def test_a_model_that_does_not_run_is_named():
    assert unsupported_reason(RolloutEngine(build("bloom")), PROMPTS, GREEDY).startswith(
        "BloomForCausalLM does not run in the engine"
    )


def test_log_probs_that_are_not_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(
        RolloutEngine,
        "attention_masks",
        lambda self, positions: torch.full((1, 1, 1, positions.attended_columns), torch.nan),
    )
    reason = unsupported_reason(RolloutEngine(build("llama")), PROMPTS, GREEDY, skipped=[1])
    assert reason.startswith("LlamaForCausalLM gets other log-probabilities in the engine than in a full forward")
