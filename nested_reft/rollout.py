"""Sampling that remembers the behavior policy's log-probabilities.

They are taken from the logits that the tokens are drawn from, so no second forward is spent on them.
"""

import copy

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel


class BehaviorLogProbs(LogitsProcessor):
    """Remember log mu(a_t) of the *unconstrained* softmax(logits / temperature), then ban early ends.

    transformers' own ban on the end token (`min_new_tokens`) runs before any custom processor and
    would be part of what is remembered; the ratio pi / mu would then not be 1 where mu = pi. So the
    ban is applied here, after the distribution is noted.
    """

    def __init__(self, temperature: float, min_new_tokens: int, eos_token_ids: list[int]) -> None:
        self.temperature = temperature
        self.min_new_tokens = min_new_tokens
        self.eos_token_ids = eos_token_ids
        self.logps: list[torch.Tensor] = []  # one (B,) per sampled token
        self.distribution: torch.Tensor | None = None  # (B, V), of the token about to be drawn

    def note(self, token_ids: torch.Tensor) -> None:
        """Keep the log-prob of the tokens (B,) that were just drawn."""
        assert self.distribution is not None
        self.logps.append(self.distribution.gather(1, token_ids.unsqueeze(1)).squeeze(1))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Note the previous token's log-prob and this one's distribution. scores: (B, V)."""
        if self.distribution is not None:
            self.note(input_ids[:, -1])
        self.distribution = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        if len(self.logps) < self.min_new_tokens:
            scores = scores.clone()
            scores[:, self.eos_token_ids] = -torch.inf
        return scores


def sample(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    generation_config: GenerationConfig,
    eos_token_ids: list[int],
) -> tuple[list[list[int]], list[list[float]]]:
    """Sample one completion for each prompt.

    Args:
        model: the (nested) model.
        prompt_ids: B prompts, of any lengths.
        generation_config: lengths, temperature and padding; its sampling filters must be off.
        eos_token_ids: every token that ends a completion.

    Returns:
        B completions, each up to and including its first end token, and for each of their tokens
        log mu(a_t).
    """
    device = model.device
    width = max(map(len, prompt_ids))
    pad_token_id = generation_config.pad_token_id
    rows = [[pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]

    generation_config = copy.deepcopy(generation_config)
    recorder = BehaviorLogProbs(generation_config.temperature, generation_config.min_new_tokens or 0, eos_token_ids)
    generation_config.min_new_tokens = None
    output = model.generate(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(mask, device=device),
        generation_config=generation_config,
        logits_processor=LogitsProcessorList([recorder]),
    )
    completions = output[:, width:]  # (B, T)
    recorder.note(completions[:, -1])
    logps = torch.stack(recorder.logps, dim=1)  # (B, T)

    is_eos = torch.isin(completions, torch.tensor(eos_token_ids, device=device))
    before_end = is_eos.cumsum(dim=1) - is_eos.int()  # ends seen strictly before each token
    lengths = (before_end == 0).sum(dim=1).tolist()
    return (
        [row[:length] for row, length in zip(completions.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(logps.tolist(), lengths, strict=True)],
    )
