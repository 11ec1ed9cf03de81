"""Sampling a token from logits, with random numbers that are a function of (seed, step, row)."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import TopPLogitsWarper


class SamplingParams(NamedTuple):
    """How tokens are sampled from softmax(logits / temperature)."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 is greedy decoding
    top_p: float = 1.0
    # Ban the EOS tokens until max_new_tokens, as in the paper. Log-probs stay those of the softmax without the ban.
    fixed_length: bool = False
    eos_token_ids: tuple[int, ...] = ()


def philox_uniforms(seed: int, step: int, row: int, size: int) -> np.ndarray:
    """Return uniform numbers in [0, 1), float64 (size,), which are a function of the arguments alone.

    Philox is a counter-based generator: (seed, step) is its key and the row its counter, so rows are independent of
    each other and of the batch that they are in.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, row])).random(size)


def sample_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the next tokens by inverting the cumulative distribution.

    Args:
        logits: (B, V).
        uniforms: a uniform random number for each row, (B,).
        sampling: the distribution.

    Returns:
        The tokens (B,), and log mu(a_t) (B,) of the softmax(logits / temperature) without ban and filter.
    """
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    probs = candidates = logits.softmax(dim=-1)  # (B, V)
    if sampling.fixed_length:
        banned = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=logits.device)
        candidates = candidates.index_fill(1, banned, 0)
    if sampling.temperature == 0:
        tokens = candidates.argmax(dim=1)
    else:
        if sampling.top_p < 1:
            nucleus = TopPLogitsWarper(sampling.top_p, filter_value=-torch.inf)
            candidates = nucleus(None, candidates.log()).exp()
        # Single precision would misplace tokens of probability below 1e-5 in a vocabulary of 150,000.
        cumulative = candidates.cumsum(dim=1, dtype=torch.float64)
        thresholds = uniforms.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return tokens, probs.gather(1, tokens.unsqueeze(1)).squeeze(1).log()


def truncate_after_eos(
    tokens: torch.Tensor, logps: torch.Tensor, eos_token_ids: torch.Tensor
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the rows of tokens and log-probs, both (B, T), up to and including their first EOS token."""
    is_eos = torch.isin(tokens, eos_token_ids)
    num_eos_before = is_eos.cumsum(dim=1) - is_eos.int()  # (B, T)
    lengths = (num_eos_before == 0).sum(dim=1).tolist()
    return (
        [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(logps.tolist(), lengths, strict=True)],
    )
