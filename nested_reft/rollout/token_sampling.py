"""Sampling a token from logits, with random numbers that are a function of (seed, step, row)."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import TopPLogitsWarper

# The tokens of a block in `draw_by_blocks`.
BLOCK = 256
# On a CPU, rows are sampled in groups of at most this many logits, so that the tensors in between stay in its cache.
LOGITS_PER_GROUP = 2**18


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


def row_seed(seed: int, step: int, row: int) -> int:
    """Return a seed from 0 to 2^63 - 1 for a generator of another library, which is a function of the arguments."""
    return int(np.random.Philox(key=[seed, step], counter=[0, 0, 0, row]).random_raw() >> 1)


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
    rows = max(1, LOGITS_PER_GROUP // logits.shape[1])
    if logits.device.type == "cpu" and rows < len(logits):
        groups = zip(logits.split(rows), uniforms.split(rows), strict=True)
        tokens, logps = zip(*(sample_tokens(*group, sampling) for group in groups), strict=True)
        return torch.cat(tokens), torch.cat(logps)
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
        draw = draw_by_blocks if logits.device.type == "cpu" else draw_tokens
        tokens = draw(candidates, uniforms)
    # The division removes the rounding of the softmax's sum, which `model.scoring.log_probs` explains.
    return tokens, (probs.gather(1, tokens.unsqueeze(1)).squeeze(1) / probs.sum(dim=1)).log()


def draw_tokens(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw an index of each row by inverting its cumulative sum.

    Args:
        weights: probabilities up to a factor, float32 (B, V).
        uniforms: a uniform random number in [0, 1) for each row, float64 (B,).

    Returns:
        For each row the first index at which the cumulative sum exceeds the random share of the total, (B,).
    """
    # Single precision would misplace tokens of probability below 1e-5 in a vocabulary of 150,000.
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    thresholds = uniforms.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp(max=weights.shape[1] - 1)


def draw_by_blocks(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return exactly what `draw_tokens` returns, from the sums of blocks and the cumulative sum of one block per row.

    The two ways of adding differ by rounding. A row whose random number is so close to a boundary between two tokens
    that rounding could decide is therefore drawn by `draw_tokens`.

    Args:
        weights: as for `draw_tokens`.
        uniforms: as for `draw_tokens`.
    """
    size = weights.shape[1]
    whole = size - size % BLOCK
    if not whole:
        return draw_tokens(weights, uniforms)
    blocks = weights[:, :whole].unflatten(1, (-1, BLOCK)).double().sum(dim=2)  # (B, V // BLOCK)
    rest = weights[:, whole:].double().sum(dim=1, keepdim=True)
    ends = torch.cat([blocks, rest], dim=1).cumsum(dim=1)
    total = ends[:, -1:]
    thresholds = uniforms.unsqueeze(1) * total  # (B, 1)
    block = torch.searchsorted(ends, thresholds, right=True).clamp(max=ends.shape[1] - 1)  # (B, 1)
    # The last block overlaps the one before, so that all have the same size.
    columns = (block * BLOCK).clamp(max=size - BLOCK) + torch.arange(BLOCK)  # (B, BLOCK)
    in_block = weights.gather(1, columns).double().masked_fill(columns < block * BLOCK, 0)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0)
    cumulative = before + in_block.cumsum(dim=1)  # (B, BLOCK)
    index = torch.searchsorted(cumulative, thresholds, right=True).clamp(max=BLOCK - 1)
    tokens = columns.gather(1, index).squeeze(1)
    # The boundaries of the token, and those of the block, in which the token may be the first or the last.
    boundaries = torch.cat([cumulative, before, ends.gather(1, block)], dim=1)
    rounding = 2 * size * torch.finfo(torch.float64).eps * total  # of both sums and of both thresholds
    is_close = ~((boundaries - thresholds).abs() > rounding).all(dim=1)  # true for NaN
    if is_close.any():
        tokens[is_close] = draw_tokens(weights[is_close], uniforms[is_close])
    return tokens


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
