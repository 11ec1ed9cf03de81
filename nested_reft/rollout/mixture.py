"""Roll-outs of the defensive mixture: some completions are sampled by the whole model, and the rest by the nested one.

The ratio of every completion is that to the mixture of both policies (`mitigation.ratio_to_mixture`), for which log mu
of every completion is needed. The sampler reports it for the completions of the nested model, and one forward of the
nested model over each completion of the whole model computes it for these.
"""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from nested_reft.errors import NestingError
from nested_reft.model.layers import nested
from nested_reft.model.scoring import completion_logits, log_probs
from nested_reft.rollout.sampler import Sampler


def sampler_of_whole(nested_sampler: Sampler) -> Sampler:
    """Return the sampler of the completions of the whole model.

    It has buffers and compiled layers of its own, because both fit one number of rows.

    Raises:
        NestingError: the sampler is vLLM, whose engine holds one number of layers.
    """
    if nested_sampler.kind == "vllm":
        raise NestingError(
            "whole_share samples with and without skipped layers, but the sampler vllm has an engine for one number "
            "of layers; set the sampler to engine, or whole_share to 0"
        )
    return Sampler(nested_sampler.kind, nested_sampler.dtype)


@torch.no_grad()
def completion_logps(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperature: float,
    batch_size: int,
) -> list[list[float]]:
    """Return the log-probs of the tokens of completions, from forwards over whole sequences.

    Args:
        model: the (nested) model.
        prompt_ids: B prompts.
        completion_ids: their completions.
        temperature: the sampling temperature.
        batch_size: the largest number of sequences of a forward.
    """
    logps: list[list[float]] = []
    for start in range(0, len(prompt_ids), batch_size):
        rows = slice(start, start + batch_size)
        logits = completion_logits(model, prompt_ids[rows], completion_ids[rows])
        for of_row, tokens in zip(logits, completion_ids[rows], strict=True):
            columns = torch.tensor(tokens, device=of_row.device).unsqueeze(1)
            logps.append(log_probs(of_row.float() / temperature).gather(1, columns).squeeze(1).tolist())
    return logps


def sample_mixture(
    nested_sampler: Sampler,
    whole_sampler: Sampler,
    model: PreTrainedModel,
    skipped: Sequence[int],
    prompt_ids: Sequence[list[int]],
    is_whole: Sequence[bool],
    generation_config: GenerationConfig,
    eos_token_ids: list[int],
    seed: int,
    step: int,
    rows: Sequence[int],
    batch_size: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """Sample one completion for each prompt, from the whole model or from the nested one.

    Args:
        nested_sampler: the sampler of the nested model.
        whole_sampler: the sampler of the whole model, `sampler_of_whole`.
        model: the model, which may be wrapped.
        skipped: the indices of the layers that the nested model skips.
        prompt_ids: B prompts.
        is_whole: whether the whole model samples the completion of each prompt (B,).
        generation_config: as for `Sampler.sample`.
        eos_token_ids: every token that ends a completion.
        seed: the seed of the run.
        step: the optimizer step for which the skipped layers were drawn.
        rows: the index of each prompt among the prompts of all processes (B,).
        batch_size: the largest number of sequences of a scoring forward.

    Returns:
        B completions, and for each of their tokens log mu(a_t) under the nested model.
    """
    completion_ids: list[list[int]] = [[] for _ in prompt_ids]
    behavior_logps: list[list[float]] = [[] for _ in prompt_ids]
    for sampler, of_whole in ((nested_sampler, False), (whole_sampler, True)):
        places = [place for place, flag in enumerate(is_whole) if flag == of_whole]
        if not places:
            continue
        prompts = [prompt_ids[place] for place in places]
        completions, logps = sampler.sample(
            model,
            () if of_whole else skipped,
            prompts,
            generation_config,
            eos_token_ids,
            seed,
            step,
            [rows[place] for place in places],
        )
        if of_whole:
            with nested(model, skipped):
                logps = completion_logps(model, prompts, completions, generation_config.temperature, batch_size)
        for place, tokens, token_logps in zip(places, completions, logps, strict=True):
            completion_ids[place], behavior_logps[place] = tokens, token_logps
    return completion_ids, behavior_logps
