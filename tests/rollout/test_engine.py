"""The roll-out engine computes the same function as `generate`, for any skipped layers and any batch size."""

import numpy as np
import pytest
import torch
from scipy import stats

from nested_reft.model.layers import nested
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.token_sampling import SamplingParams
from tests.model.families import PROMPTS, build, valid
from tests.rollout.reference import GREEDY, SUPPORTED, check_against_generate, greedy_by_generate, scored_logps


@pytest.mark.parametrize("family", SUPPORTED)
def test_greedy_tokens_are_those_of_generate_and_log_probs_those_of_a_scoring_forward(family):
    model = build(family)
    check_against_generate(model, compiled=False)
    for skipped in ([], valid(model)[:1]):
        two_rows = RolloutEngine(model).sample(PROMPTS, GREEDY, seed=0, skipped=skipped, batch_size=2)[0]
        assert two_rows == greedy_by_generate(model, skipped), (
            "a row that is taken over must not attend to its former prompt"
        )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_samples_of_a_model_have_its_distribution(compiled, small_model):
    """Chi-square over the vocabulary, with 20,000 completions of one prompt."""
    num_completions = 20_000
    sampling = SamplingParams(max_new_tokens=1, temperature=0.8)
    engine = RolloutEngine(small_model, compiled)
    completions, _ = engine.sample([PROMPTS[0]] * num_completions, sampling, seed=3, skipped=[2], batch_size=500)
    with torch.no_grad(), nested(small_model, [2]):
        logits = small_model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = num_completions * torch.softmax(logits / 0.8, dim=-1).double().numpy()
    counts = np.bincount([tokens[0] for tokens in completions], minlength=len(expected))
    common = expected > 5  # rarer tokens share one bin
    observed = [*counts[common], counts[~common].sum()]
    wanted = np.array([*expected[common], expected[~common].sum()])
    assert stats.chisquare(observed, wanted * num_completions / wanted.sum()).pvalue > 1e-3
    tilted = wanted * np.linspace(0.9, 1.1, len(wanted))
    assert stats.chisquare(observed, tilted * num_completions / tilted.sum()).pvalue < 1e-3, "the test can fail"


def test_completions_depend_on_seed_step_and_row_and_not_on_the_batch(small_model):
    engine = RolloutEngine(small_model)
    sampling = SamplingParams(max_new_tokens=10, eos_token_ids=(2,))
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    whole = engine.sample(prompts, sampling, seed=1, step=7)[0]
    assert engine.sample(prompts, sampling, seed=1, step=7, batch_size=5)[0] == whole
    assert RolloutEngine(small_model).sample(prompts, sampling, seed=1, step=7, batch_size=1)[0] == whole
    shares = [engine.sample(prompts[rank::2], sampling, 1, 7, rows=range(rank, len(prompts), 2)) for rank in (0, 1)]
    assert [shares[row % 2][0][row // 2] for row in range(len(prompts))] == whole
    assert engine.sample(prompts, sampling, seed=1, step=8)[0] != whole
    assert engine.sample(prompts, sampling, seed=2, step=7)[0] != whole
    assert len({tuple(row) for row in whole[:3]}) > 1  # rows of one prompt differ
    before = torch.get_rng_state()
    engine.sample(prompts, sampling, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shared_prompt_is_prefilled_once(small_model):
    engine, input_shapes = RolloutEngine(small_model), []
    hook = small_model.register_forward_pre_hook(
        lambda module, args, kwargs: input_shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine.sample([PROMPTS[0]] * 6 + [PROMPTS[2]] * 2, SamplingParams(max_new_tokens=3, fixed_length=True), seed=0)
    hook.remove()
    assert input_shapes == [
        (2, len(PROMPTS[0]) - 1),
        (8, 1),
        (8, 1),
        (8, 1),
    ]  # a prefill of two prompts, then decode steps of eight rows


def test_a_copy_in_another_type_is_synchronized_with_the_weights(small_model):
    engine = RolloutEngine(small_model, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.bfloat16}
    assert small_model.dtype == torch.float32
    _, logps = engine.sample(PROMPTS, GREEDY, seed=0)
    with torch.no_grad():
        small_model.lm_head.weight.mul_(3)
    completions, synchronized = engine.sample(PROMPTS, GREEDY, seed=0)
    assert synchronized != logps
    whole = torch.tensor([logp for row in scored_logps(small_model, [], completions) for logp in row])
    error = (torch.tensor([logp for row in synchronized for logp in row]) - whole).abs()
    assert 0 < error.mean() < 0.05
