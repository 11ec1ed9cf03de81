"""Log-probabilities of completions from a forward that reads each prompt once, for all of its completions.

TRL repeats the prompt in the row of each completion. Here a row has a prompt and all of its completions:

    prompt without its last token | last token, completion 1 | last token, completion 2 | ...

A token attends to the prompt and to its own completion, at the positions that it has in TRL's rows. The
log-probabilities and their gradient are therefore TRL's, except for rounding. The last token of the prompt is repeated
because it predicts the first token of each completion, and TRL takes the label of a position from the next column.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from nested_reft.errors import NestingError
from nested_reft.model.layers import language_model

# The families (`model_type`) for which a test compares log-probabilities and gradients with those of TRL's forward.
FAMILIES = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
IGNORED = -100  # the label of a position that is not scored


@dataclass(frozen=True)
class PackedBatch:
    """P prompts with their completions. A completion is in one row, `rows` (B, 1), and in the `columns` (B, T)."""

    input_ids: torch.Tensor  # (P, L)
    position_ids: torch.Tensor  # (P, L)
    attention_mask: torch.Tensor  # (P, 1, L, L), True where a token attends
    labels: torch.Tensor  # (P, L)
    rows: torch.Tensor
    columns: torch.Tensor

    def completions(self, per_token: torch.Tensor) -> torch.Tensor:
        """Return the values (B, T) of the completion tokens from those (P, L - 1) of all positions but the last."""
        return per_token[self.rows, self.columns - 1]


def pack(input_ids: torch.Tensor, attention_mask: torch.Tensor, num_completion_tokens: int) -> PackedBatch:
    """Return a micro-batch of TRL with one row for each different prompt.

    The rows are as long as the prompt with most completions needs, so most is saved where all have equally many.

    Args:
        input_ids: prompts, padded on the left, and completions, padded on the right (B, S).
        attention_mask: 1 for tokens and 0 for padding (B, S).
        num_completion_tokens: T, the number of columns of the completions.
    """
    last = input_ids.shape[1] - num_completion_tokens - 1  # the column of the last token of all prompts
    prompts = torch.cat([input_ids[:, : last + 1], attention_mask[:, : last + 1]], dim=1)
    _, row = torch.unique(prompts, dim=0, return_inverse=True)  # (B,)
    same = row.unsqueeze(0) == row.unsqueeze(1)
    place = same.tril(-1).sum(dim=1)  # (B,) among the completions of the prompt
    num_rows, num_places, length = int(row.max()) + 1, int(place.max()) + 1, num_completion_tokens + 1

    within = torch.arange(length, device=input_ids.device)
    rows, columns = row.unsqueeze(1), last + place.unsqueeze(1) * length + within  # (B, 1), (B, T + 1)
    shape = (num_rows, last + num_places * length)
    ids, valid, labels = input_ids.new_zeros(shape), attention_mask.new_zeros(shape), input_ids.new_zeros(shape)
    ids[row, :last], valid[row, :last] = input_ids[:, :last], attention_mask[:, :last]
    ids[rows, columns], valid[rows, columns] = input_ids[:, last:], attention_mask[:, last:]
    labels.fill_(IGNORED)[rows, columns[:, 1:]] = input_ids.masked_fill(attention_mask == 0, IGNORED)[:, last + 1 :]

    prompt = torch.arange(last, device=input_ids.device)
    position_ids = torch.cat([prompt, (last + within).repeat(num_places)])  # (L,)
    part = torch.cat(
        [torch.full_like(prompt, -1), torch.arange(num_places, device=prompt.device).repeat_interleave(length)]
    )
    sees = ((part == -1) | (part == part.unsqueeze(1))).tril()  # (L, L)
    # Padding attends to itself: attention over no token is not a number.
    attends = (sees & (valid == 1).unsqueeze(1)) | torch.eye(shape[1], dtype=torch.bool, device=sees.device)
    return PackedBatch(ids, position_ids.expand(shape), attends.unsqueeze(1), labels, rows, columns[:, 1:])


def untested_reason(config: PreTrainedConfig) -> str:
    """Return why the packed rows of a decoder are not known to give TRL's log-probabilities, or an empty string.

    Args:
        config: the configuration of the decoder, as `get_text_config()` returns it.
    """
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in FAMILIES:
        return f"the model is of the family {config.model_type}, and the tested families are {', '.join(FAMILIES)}"
    if types != {"full_attention"} or getattr(config, "sliding_window", None):
        return "layers of the model attend within a sliding window"
    return ""


def check_shared_prompts(model: torch.nn.Module) -> None:
    """Refuse a model for which the packed rows are not known to give TRL's log-probabilities.

    Raises:
        NestingError: if the family is not in FAMILIES, if layers have a sliding window, or if attention is not SDPA.
    """
    inner: PreTrainedModel = language_model(model)
    config = inner.config.get_text_config()
    reason = untested_reason(config)
    if not reason and config._attn_implementation != "sdpa":
        reason = f"its attention is {config._attn_implementation}, and only sdpa takes a mask for each pair of tokens"
    if reason:
        raise NestingError(f"share_prompts cannot be used: {reason}; set share_prompts to False")
