"""Sampling a token from logits, and the random numbers that this takes."""

import numpy as np
import torch
from scipy import stats

from nested_reft.rollout.token_sampling import SamplingParams, philox_uniforms, sample_tokens


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
