"""The logits that a model gives to completions, from forwards over whole sequences."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Return the log-probs of the whole vocabulary from logits (..., V), float32.

    On a CPU, `log_softmax` and `softmax` round the sum over a vocabulary of 150,000 by 2e-5, and for all tokens of a
    row in one direction. `logsumexp`, which TRL uses, rounds it by 2e-6.
    """
    logits = logits.float()
    return logits - logits.logsumexp(dim=-1, keepdim=True)


def logits_with_graph(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Return the logits from which each token of the completions is sampled, one tensor (T, V) per completion.

    Args:
        model: the (nested) model.
        prompt_ids: B prompts.
        completion_ids: their completions, which are scored in one forward without a KV cache.
    """
    sequences = [
        torch.tensor([*prompt, *tokens], device=model.device)
        for prompt, tokens in zip(prompt_ids, completion_ids, strict=True)
    ]
    # Padding on the right needs no mask: causal attention does not see it. No logits of the shortest prompt are kept.
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)  # (B, T)
    start = min(map(len, prompt_ids)) - 1
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=input_ids.shape[1] - start).logits
    return [
        of_row[len(prompt) - 1 - start : len(sequence) - 1 - start]
        for prompt, sequence, of_row in zip(prompt_ids, sequences, logits, strict=True)
    ]


@torch.no_grad()
def completion_logits(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Return the same logits without a graph."""
    return logits_with_graph(model, prompt_ids, completion_ids)
