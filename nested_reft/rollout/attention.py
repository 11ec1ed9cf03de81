"""Attention of one decode step over a static KV cache."""

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HARMLESS = ("position_ids", "use_cache", "is_causal", "output_attentions")
ATTENTION = "nested_reft_decode"


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
    """Attend from one token of each row, as sums that a compiler fuses: no (B, H, T) tensor but the weights.

    Args:
        module: the attention module; not used.
        query: (B, H, 1, D).
        key: (B, K, T, D), each of K heads shared by H / K queries and never repeated.
        value: (B, K, T, D).
        attention_mask: added to the scores: 0 where a row may attend to a column, the least number elsewhere,
            (B, 1, 1, T). Sums with it are faster than choices by a boolean one.
        scaling: of the scores.
        dropout: not used: nothing is dropped while sampling.
        sliding_window: not used: the mask holds it.
        softcap: the scores stay within plus and minus this.
        **others: what transformers passes along; sinks and biases, which change the result, are not known here.

    Returns:
        (B, 1, H, D), and no weights.

    Raises:
        NotImplementedError: for an argument that may change the result.
    """
    if unknown := [name for name, value in others.items() if value is not None and name not in HARMLESS]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    num_rows, num_heads, _, head_dim = query.shape
    query = query.view(num_rows, key.shape[1], -1, 1, head_dim)  # (B, K, H / K, 1, D)
    scores = (query.float() * key.unsqueeze(2)).sum(dim=-1) * scaling  # (B, K, H / K, T)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + attention_mask
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()  # softmax, whose sum is divided by at the end
    attended = (weights.unsqueeze(-1) * value.unsqueeze(2)).sum(dim=-2) / weights.sum(dim=-1, keepdim=True)
    return attended.view(num_rows, 1, num_heads, head_dim).to(value.dtype), None  # attended: (B, K, H / K, D)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, decode_attention)
