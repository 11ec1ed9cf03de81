"""How a token is drawn from logits, by random numbers that are a function of (seed, step, row)."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import TopPLogitsWarper


class Sampling(NamedTuple):
    """How completions are drawn from softmax(logits / temperature)."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 takes the likeliest token
    top_p: float = 1.0
    fixed_length: bool = False  # the end token is banned, as in the paper; log mu is that of the unbanned softmax
    eos_token_ids: tuple[int, ...] = ()


def philox_uniforms(seed: int, step: int, row: int, size: int) -> np.ndarray:
    """Return numbers in [0, 1), float64 (size,): a function of the arguments alone.

    Philox is a counter-based generator: (seed, step) is its key and the row its counter, so that rows are
    independent of each other and of the batch they are in.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, row])).random(size)


def draw(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the next tokens by inverting the cumulative distribution.

    Args:
        logits: (B, V).
        draws: uniform numbers (B,).
        sampling: how.

    Returns:
        The tokens (B,), and log mu(a_t) (B,) of the unbanned, unfiltered softmax(logits / temperature).
    """
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    probs = choices = logits.softmax(dim=-1)  # (B, V)
    if sampling.fixed_length:
        banned = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=logits.device)
        choices = choices.index_fill(1, banned, 0)
    if sampling.temperature == 0:
        tokens = choices.argmax(dim=1)
    else:
        if sampling.top_p < 1:
            choices = TopPLogitsWarper(sampling.top_p, filter_value=-torch.inf)(None, choices.log()).exp()
        # Double precision: over 150,000 tokens single precision would misplace what is rarer than 1e-5.
        cumulative = choices.cumsum(dim=1, dtype=torch.float64)
        thresholds = draws.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return tokens, probs.gather(1, tokens.unsqueeze(1)).squeeze(1).log()


def truncate_after_eos(
    tokens: torch.Tensor, logps: torch.Tensor, eos_token_ids: torch.Tensor
) -> tuple[list[list[int]], list[list[float]]]:
    """Cut tokens and their log-probs, both (B, T), behind the first end token of each row."""
    is_eos = torch.isin(tokens, eos_token_ids)
    before_end = is_eos.cumsum(dim=1) - is_eos.int()  # ends seen strictly before each token
    lengths = (before_end == 0).sum(dim=1).tolist()
    return (
        [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(logps.tolist(), lengths, strict=True)],
    )
