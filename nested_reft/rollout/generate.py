"""Sampling by transformers' `generate`, with the log-probabilities of the behavior policy for training."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nested_reft.errors import NestingError
from nested_reft.model.scoring import log_probs
from nested_reft.rollout.token_sampling import truncate_after_eos

if TYPE_CHECKING:
    from nested_reft.config.sections import Evaluation

# Generation settings that change the distribution that tokens are sampled from, and the value that turns each off.
FILTERS = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "num_beams": 1,
    "min_length": 0,  # bans EOS before log-probs are recorded; `BehaviorLogProbs` replaces `min_new_tokens`
}


def sample_by_generate(
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
        B completions, each up to and including its first EOS token, and for each of their tokens log mu(a_t).

    Raises:
        NestingError: if a sampling filter is on (`refuse_filters`).
    """
    refuse_filters(generation_config, model.generation_config)
    device = model.device
    width = max(map(len, prompt_ids))
    pad_token_id = generation_config.pad_token_id
    input_ids = [[pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
    attention_mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]

    generation_config = copy.deepcopy(generation_config)
    recorder = BehaviorLogProbs(generation_config.temperature, generation_config.min_new_tokens or 0, eos_token_ids)
    generation_config.min_new_tokens = None
    output = model.generate(
        input_ids=torch.tensor(input_ids, device=device),
        attention_mask=torch.tensor(attention_mask, device=device),
        generation_config=generation_config,
        logits_processor=LogitsProcessorList([recorder]),
    )
    completions = output[:, width:]  # (B, T)
    recorder.note(completions[:, -1])
    logps = torch.stack(recorder.logps, dim=1)  # (B, T)
    return truncate_after_eos(completions, logps, torch.tensor(eos_token_ids, device=device))


class BehaviorLogProbs(LogitsProcessor):
    """Record log mu(a_t) of the *unconstrained* softmax(logits / temperature), then ban EOS up to a shortest length.

    transformers' own ban of EOS (`min_new_tokens`) runs before any custom processor, so the recorded distribution
    would include it, and the ratio pi / mu would not be 1 where mu = pi. The ban is therefore applied here, after the
    distribution is recorded.
    """

    def __init__(self, temperature: float, min_new_tokens: int, eos_token_ids: list[int]) -> None:
        self.temperature = temperature
        self.min_new_tokens = min_new_tokens
        self.eos_token_ids = eos_token_ids
        self.logps: list[torch.Tensor] = []  # one (B,) per sampled token
        self.distribution: torch.Tensor | None = None  # (B, V), log-probs of the token to be sampled next

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Record the previous token's log-prob and the next token's distribution. scores: (B, V)."""
        if self.distribution is not None:
            self.note(input_ids[:, -1])
        self.distribution = log_probs(scores.float() / self.temperature)
        if len(self.logps) < self.min_new_tokens:
            scores = scores.clone()
            scores[:, self.eos_token_ids] = -torch.inf
        return scores

    def note(self, token_ids: torch.Tensor) -> None:
        """Record the log-probs of the tokens (B,) that were just sampled."""
        assert self.distribution is not None
        self.logps.append(self.distribution.gather(1, token_ids.unsqueeze(1)).squeeze(1))


def refuse_filters(generation_config: GenerationConfig, model_config: GenerationConfig) -> None:
    """Refuse generation settings with which tokens are not sampled from softmax(logits / temperature).

    The recorded log-probs would not be those of the behavior policy, and every ratio pi / mu would be wrong.

    Args:
        generation_config: the requested settings.
        model_config: the model's own settings, which `generate` uses where nothing is requested.

    Raises:
        NestingError: if a filter is on; the message names the filter, its value, and the value that turns it off.
    """
    if not generation_config.do_sample:
        raise NestingError(
            "do_sample is off, and greedy tokens are not sampled from a distribution; set do_sample to True"
        )
    library_defaults = GenerationConfig._get_default_generation_params()
    for name, off in FILTERS.items():
        sources = [
            (getattr(generation_config, name), "as requested"),
            (getattr(model_config, name), "from the model's generation_config.json"),
            (library_defaults.get(name), "transformers' default"),
        ]
        value, origin = next(((value, origin) for value, origin in sources if value is not None), (off, ""))
        if value != off and (value or off):  # 0 and null both turn a filter off
            raise NestingError(
                f"{name} = {value} ({origin}) changes the distribution that tokens are sampled from, so that the "
                f"log-probabilities of the behavior policy would be wrong; set {name} to {off}"
            )


def complete_by_generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    settings: "Evaluation",
    on_finished: Callable[[int], object],
) -> list[list[int]]:
    """Return a completion of each prompt for an evaluation, up to and including its EOS token.

    Args:
        model: the model, without skipped layers. Its generation settings are replaced.
        tokenizer: the tokenizer of the model.
        prompt_ids: the prompts; a prompt that occurs n times gets n completions.
        settings: the settings of the evaluation.
        on_finished: called with the number of completions that have just ended.
    """
    # Only the EOS tokens of the model's own generation settings are kept: some models ship a repetition penalty.
    eos_token_id = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos_token_id, pad_token_id=tokenizer.pad_token_id)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    torch.manual_seed(settings.seed)

    # Batches of prompts of similar lengths need the least padding.
    order = sorted(range(len(prompt_ids)), key=lambda index: (len(prompt_ids[index]), index))
    completions: list[list[int]] = [[]] * len(prompt_ids)
    for start in range(0, len(order), settings.batch_size):
        indices = order[start : start + settings.batch_size]
        rows = {"input_ids": [prompt_ids[index] for index in indices]}
        batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model.generate(**batch, max_new_tokens=settings.max_new_tokens, **sampling)
        tokens = output[:, batch["input_ids"].shape[1] :]  # rows that have ended are padded after their EOS token
        ends = torch.tensor([] if eos_token_id is None else eos_token_id, dtype=tokens.dtype, device=tokens.device)
        for index, row in zip(indices, truncate_after_eos(tokens, tokens, ends)[0], strict=True):
            completions[index] = row
        on_finished(len(indices))
    return completions
