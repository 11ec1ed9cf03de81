"""Attention of one decode step over a static KV cache."""

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Arguments that transformers passes to an attention function and that do not change the result of a decode step.
IGNORED_ARGUMENTS = ("position_ids", "use_cache", "is_causal", "output_attentions")


def decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one token of each row, written as sums that a compiler fuses into one loop.

    The only intermediate tensor of the size of the scores is the attention weights; keys and values are not repeated
    for the query heads that share them.

    Args:
        module: the attention module; not used.
        query: (B, H, 1, D).
        key: (B, K, T, D), each of K heads shared by H / K query heads.
        value: (B, K, T, D).
        attention_mask: added to the scores, (B, 1, 1, T): 0 where a row may attend to a column, the least number of
            the type elsewhere. Adding it is faster than selecting by a boolean mask.
        scaling: the factor of the scores.
        dropout: not used: nothing is dropped while sampling.
        sliding_window: not used: the attention mask implies it.
        softcap: the bound of the absolute value of the scores.
        **others: further arguments of transformers. Sinks and biases change the result and are not supported.

    Returns:
        (B, 1, H, D), and None in place of the attention weights.

    Raises:
        NotImplementedError: for an argument that may change the result.
    """
    if unknown := [name for name, value in others.items() if value is not None and name not in IGNORED_ARGUMENTS]:
        raise NotImplementedError(f"attention with {', '.join(unknown)} is not supported")
    batch_size, num_heads, _, head_dim = query.shape
    query = query.view(batch_size, key.shape[1], -1, 1, head_dim)  # (B, K, H / K, 1, D)
    scores = (query.float() * key.unsqueeze(2)).sum(dim=-1) * scaling  # (B, K, H / K, T)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + attention_mask
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()  # softmax, up to a sum that the output is divided by
    attended = (weights.unsqueeze(-1) * value.unsqueeze(2)).sum(dim=-2) / weights.sum(dim=-1, keepdim=True)
    return attended.view(batch_size, 1, num_heads, head_dim).to(value.dtype), None  # attended: (B, K, H / K, D)


ATTENTION = "nested_reft_decode"  # the name of this function as `attn_implementation`
ALL_ATTENTION_FUNCTIONS.register(ATTENTION, decode_attention)
