"""Sampling a token from logits, and the random numbers that this takes."""

import numpy as np
import pytest
import torch
from scipy import stats

from nested_reft.model.scoring import log_probs
from nested_reft.rollout import token_sampling
from nested_reft.rollout.token_sampling import (
    SamplingParams,
    draw_by_blocks,
    draw_tokens,
    philox_uniforms,
    sample_tokens,
)


def test_tokens_are_sampled_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, -torch.inf]).expand(20_000, -1)
    uniforms = torch.from_numpy(np.stack([philox_uniforms(0, 0, row, 1)[0] for row in range(20_000)]))
    tokens, logps = sample_tokens(logits, uniforms, SamplingParams(max_new_tokens=1, temperature=1.5))
    probs = torch.softmax(logits[0] / 1.5, dim=-1)
    counts = torch.bincount(tokens, minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4].numpy(), probs[:4].double().numpy() * 20_000).pvalue > 1e-3
    assert torch.allclose(logps, probs.log()[tokens])
    biased = probs[:4].double().numpy() * 20_000 * np.array([1.1, 1, 1, 1])
    assert stats.chisquare(counts[:4].numpy(), biased / biased.sum() * 20_000).pvalue < 1e-3  # the test can fail


def test_log_probs_of_a_large_vocabulary_are_those_of_double_precision():
    """`log_softmax` is off by 1.6e-5 here, on a CPU with AVX2."""
    logits = 3 * torch.randn(8, 151_936, generator=torch.Generator().manual_seed(0))
    exact = logits.double().log_softmax(dim=-1)
    assert (log_probs(logits) - exact).abs().max() < 5e-6
    tokens, logps = sample_tokens(logits, torch.linspace(0, 0.9, 8).double(), SamplingParams(max_new_tokens=1))
    assert (logps - exact.gather(1, tokens.unsqueeze(1)).squeeze(1)).abs().max() < 5e-6


def test_a_banned_eos_token_is_not_sampled_but_keeps_its_probability():
    logits = torch.tensor([[5.0, 0.0, 0.0]]).expand(500, -1)
    uniforms = torch.linspace(0, 1 - 1e-9, 500, dtype=torch.float64)
    tokens, logps = sample_tokens(
        logits, uniforms, SamplingParams(max_new_tokens=1, fixed_length=True, eos_token_ids=(0,))
    )
    assert set(tokens.tolist()) == {1, 2}
    assert torch.allclose(logps, torch.log_softmax(logits[0], dim=-1)[1].expand(500))
    nucleus, _ = sample_tokens(logits, uniforms, SamplingParams(max_new_tokens=1, top_p=0.9))
    assert set(nucleus.tolist()) == {0}


@pytest.mark.parametrize("size", [5, 255, 256, 257, 1000, 4096, 49_152])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_draws_by_blocks_are_the_draws_from_the_whole_sum(size, spread):
    """At random numbers, at 0 and the largest below 1, and as near to a boundary between two tokens as can be."""
    generator = torch.Generator().manual_seed(size)
    rows = 400_000 // size + 20
    weights = (spread * torch.randn(rows, size, generator=generator)).softmax(dim=1)
    weights[:, ::7] = 0
    weights[0] = 0
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    at = torch.randint(size, (rows, 1), generator=generator)
    boundaries = (cumulative / cumulative[:, -1:]).gather(1, at).squeeze(1).nan_to_num(0)
    uniforms = [torch.rand(rows, dtype=torch.float64, generator=generator), torch.zeros(rows, dtype=torch.float64)]
    uniforms += [torch.full((rows,), 1 - 2**-53, dtype=torch.float64)]
    uniforms += [boundaries, *(boundaries + shift for shift in (1e-16, -1e-16, 1e-14, -1e-14, 1e-12, -1e-12))]
    for numbers in uniforms:
        numbers = numbers.clamp(0, 1 - 2**-53)
        assert torch.equal(draw_by_blocks(weights, numbers), draw_tokens(weights, numbers))


def test_draws_by_blocks_add_up_a_whole_row_only_near_a_boundary(monkeypatch):
    drawn = []
    monkeypatch.setattr(token_sampling, "draw_tokens", lambda weights, uniforms: drawn.append(len(weights)))
    weights = torch.full((4, 1024), 1 / 1024)
    draw_by_blocks(weights, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    assert not drawn
    with pytest.raises(TypeError):  # this stand-in for `draw_tokens` draws nothing
        draw_by_blocks(weights, torch.tensor([0.1, 0.25, 0.5, 0.4], dtype=torch.float64))
    assert drawn == [2]


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}])
def test_groups_of_rows_are_sampled_as_all_rows_at_once(changes, monkeypatch):
    logits = 3 * torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    uniforms = torch.linspace(0, 0.99, 7, dtype=torch.float64)
    sampling = SamplingParams(max_new_tokens=1, fixed_length=True, eos_token_ids=(3,), **changes)
    tokens, logps = sample_tokens(logits, uniforms, sampling)
    monkeypatch.setattr(token_sampling, "LOGITS_PER_GROUP", 2000)
    for grouped, whole in zip(sample_tokens(logits, uniforms, sampling), (tokens, logps), strict=True):
        assert torch.equal(grouped, whole)
