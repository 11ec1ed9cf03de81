"""Sampling by transformers' `generate`, which notes the behavior policy's log-probabilities on the way."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from nested_reft.config.sections import Evaluation
from nested_reft.errors import NestingError
from nested_reft.rollout.sampling import truncate_after_eos

# What bends the distribution that tokens are drawn from, and the value that turns it off.
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
    "min_length": 0,  # bans the end token before the log-probs are noted; `min_new_tokens` is done here
}


def refuse_filters(generation_config: GenerationConfig, of_the_model: GenerationConfig) -> None:
    """Refuse a sampler whose tokens do not come from softmax(logits / temperature).

    The log-probs that are remembered would not be the behavior policy's, and every ratio would be off.

    Args:
        generation_config: what is asked for.
        of_the_model: the model's own, which `generate` takes for what is not asked for.

    Raises:
        NestingError: naming the filter, its value, and the value that turns it off.
    """
    if not generation_config.do_sample:
        raise NestingError("do_sample is off, and greedy tokens are drawn from no distribution; set do_sample to True")
    of_the_library = GenerationConfig._get_default_generation_params()
    for name, off in FILTERS.items():
        sources = [
            (getattr(generation_config, name), "as asked for"),
            (getattr(of_the_model, name), "from the model's generation_config.json"),
            (of_the_library.get(name), "transformers' default"),
        ]
        value, origin = next(((value, origin) for value, origin in sources if value is not None), (off, ""))
        if value != off and (value or off):  # 0 and null are the same
            raise NestingError(
                f"{name} = {value} ({origin}) bends the distribution that tokens are drawn from, so that the "
                f"log-probabilities of the behavior policy would be untrue; set {name} to {off}"
            )


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

    Raises:
        NestingError: if the sampler is filtered (`refuse_filters`).
    """
    refuse_filters(generation_config, model.generation_config)
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
    return truncate_after_eos(completions, logps, torch.tensor(eos_token_ids, device=device))


def complete_by_generate(
    model: Any, tokenizer: Any, prompt_ids: list[list[int]], settings: Evaluation, on_finished: Callable[[int], object]
) -> list[list[int]]:
    """Return the completions that transformers' `generate` draws, up to and including their end tokens."""
    import torch
    from transformers import GenerationConfig

    # Nothing of a model's own generation settings but its tokens: some ship a repetition penalty.
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    drawing: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        drawing = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    torch.manual_seed(settings.seed)

    # Neighbours of similar length waste the least padding; the order is undone by what is filled in.
    order = sorted(range(len(prompt_ids)), key=lambda index: (len(prompt_ids[index]), index))
    completions: list[list[int]] = [[]] * len(prompt_ids)
    for start in range(0, len(order), settings.batch_size):
        indices = order[start : start + settings.batch_size]
        rows = {"input_ids": [prompt_ids[index] for index in indices]}
        batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model.generate(**batch, max_new_tokens=settings.max_new_tokens, **drawing)
        for index, row in zip(indices, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            completions[index] = [token for token in row if token != tokenizer.pad_token_id]
        on_finished(len(indices))
    return completions
