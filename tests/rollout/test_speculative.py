"""Speculative samples have the distribution of the whole model, and need as many forwards as predicted."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from nested_reft.model.layers import nested
from nested_reft.model.loading import load_model
from nested_reft.model.scoring import completion_logits, log_probs
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.speculative import Draft, best_draft, expected_tokens, sample_speculatively
from nested_reft.rollout.token_sampling import SamplingParams
from tests.conftest import TINY
from tests.model.families import build

PROMPT, VOCABULARY, LENGTH = [1, 3, 2], 5, 3
SEQUENCES = [list(tokens) for tokens in product(range(VOCABULARY), repeat=LENGTH)]


def logps(model, prompt_ids, completion_ids) -> list[torch.Tensor]:
    """Return the log-probs of the tokens of each completion."""
    return [
        log_probs(logits).gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        for logits, tokens in zip(completion_logits(model, prompt_ids, completion_ids), completion_ids, strict=True)
    ]


def probabilities(model) -> np.ndarray:
    """Return the probability of each sequence after the prompt."""
    of_sequences = torch.stack(logps(model, [PROMPT] * len(SEQUENCES), SEQUENCES)).sum(dim=1).double().exp()
    assert of_sequences.sum().item() == pytest.approx(1, abs=1e-5)
    return (of_sequences / of_sequences.sum()).numpy()


@pytest.mark.parametrize("draft_length", [1, 2, 4])
def test_speculative_samples_have_the_distribution_of_the_whole_model(draft_length):
    model = build("qwen2", vocab_size=VOCABULARY)
    skipped, samples = [2, 4], 3_000
    found = sample_speculatively(model, skipped, [PROMPT] * samples, LENGTH, draft_length, seed=1)
    place = {tuple(sequence): index for index, sequence in enumerate(SEQUENCES)}
    counts = np.bincount([place[tuple(ids[:LENGTH])] for ids in found.completion_ids], minlength=len(SEQUENCES))
    whole = probabilities(model)
    with nested(model, skipped):
        other = probabilities(model)

    def p_value(expected: np.ndarray) -> float:
        """Return the p of a chi-square test in which sequences expected less than five times are one class."""
        rare = samples * expected < 5
        classes = [np.append(values[~rare], values[rare].sum()) for values in (counts, samples * expected)]
        return stats.chisquare(*classes).pvalue

    assert p_value(whole) > 0.01
    assert p_value(other) < 1e-6  # the test distinguishes samples of the nested model


def test_the_forwards_of_the_whole_model_are_as_many_as_predicted():
    model, tokenizer = load_model(TINY, "float32")
    skipped, prompts = [4, 9, 15, 22], ["What is 3 + 4?", "Ana has 5 coins and gets 2 more. How many has she?"]
    prompt_ids = [ids for ids in tokenizer(prompts)["input_ids"] for _ in range(12)]
    sampled, _ = RolloutEngine(model).sample(
        prompt_ids, SamplingParams(24, fixed_length=True), seed=2, skipped=skipped
    )
    of_pi = logps(model, prompt_ids, sampled)
    with nested(model, skipped):
        log_ratios = [(pi - mu).numpy() for pi, mu in zip(of_pi, logps(model, prompt_ids, sampled), strict=True)]
    found = sample_speculatively(model, skipped, prompt_ids, 24, draft_length=4, seed=3)
    measured = sum(map(len, found.completion_ids)) / sum(found.num_forwards)
    assert 1 < measured < 5
    assert expected_tokens(log_ratios, 4) == pytest.approx(measured, rel=0.1)


def test_expected_tokens_and_the_best_draft_by_hand():
    half = [np.log([0.5, 3.0, 0.5, 0.5]), np.log([1.0])]  # the second completion is too short for two tokens
    drafts = [0.5 + 0.5 * 1, 1 + 1 * 0.5, 0.5 + 0.5 * 0.5]
    assert expected_tokens(half, 2) == pytest.approx(1 + np.mean(drafts))
    assert expected_tokens(half, 1) == pytest.approx(1 + np.mean([0.5, 1, 0.5, 0.5, 1]))
    always = [np.zeros(40)]
    assert best_draft(always, 0.5) == (16, pytest.approx(17 / 9))
    assert best_draft(always, 1.0) == Draft(0, 1.0)  # a nested model that is as slow as the whole one
    assert best_draft([np.full(40, -20.0)], 0.9) == Draft(0, 1.0)
