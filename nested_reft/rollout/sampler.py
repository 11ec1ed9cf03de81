"""The choice of a sampler: vLLM, or the engine or, for a model that the engine does not support, `generate`."""

import itertools
import logging
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from nested_reft.errors import NestingError
from nested_reft.model.layers import nested
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.generate import refuse_filters, sample_by_generate
from nested_reft.rollout.self_check import unsupported_reason
from nested_reft.rollout.token_sampling import SamplingParams
from nested_reft.rollout.vllm import NestedVllmEngine, check_installed, logprobs_mode_for, refuse_wrong_logps

# Each falls back on the next. `vllm` falls back on none: a study would become slower than planned.
SAMPLERS = ("engine-compiled", "engine", "generate")


class Sampler:
    """Samples the completions of training, batch by batch.

    Args:
        kind: `vllm`, `engine-compiled`, `engine` or `generate`. After the first batch, the sampler in use, perhaps a
            fallback.
        dtype: sample from a copy of the weights in this type; ignored by `generate`.
        sleeps: whether vLLM gives the memory of a GPU back between batches, which it can do where all batches skip
            equally many layers.

    Raises:
        UserError: the sampler is `vllm`, which is not installed.
    """

    def __init__(self, kind: str, dtype: torch.dtype | None = None, sleeps: bool = False) -> None:
        if kind == "vllm":
            check_installed("sampler")
        self.kind, self.dtype, self.sleeps = kind, dtype, sleeps
        self.engine: RolloutEngine | None = None
        # By the number of skipped layers, and by the log-probs that vLLM reports.
        self.vllm_engines: dict[tuple[int, str], NestedVllmEngine] = {}

    def sample(
        self,
        model: PreTrainedModel,
        skipped: Sequence[int],
        prompt_ids: list[list[int]],
        generation_config: GenerationConfig,
        eos_token_ids: list[int],
        seed: int,
        step: int,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt from the model without its skipped layers.

        With an engine, completions are a function of (seed, step, index of the completion); `generate` samples from
        the global random state.

        Args:
            model: the model, which may be wrapped.
            skipped: the indices of the skipped layers.
            prompt_ids: B prompts.
            generation_config: lengths, temperature and padding; its sampling filters must be off.
            eos_token_ids: every token that ends a completion.
            seed: the seed of the run.
            step: the optimizer step for which the skipped layers were drawn.
            rows: the index of each prompt among the prompts of all processes; None means 0, 1, 2, ...

        Returns:
            B completions, each up to and including its first EOS token, and for each of their tokens log mu(a_t).

        Raises:
            NestingError: if a sampling filter is on, if an engine should ban EOS for only a part of the length, or if
                vLLM cannot sample from the model.
        """
        refuse_filters(generation_config, model.generation_config)
        longest, shortest = generation_config.max_new_tokens, generation_config.min_new_tokens or 0
        sampling = SamplingParams(
            longest,
            generation_config.temperature,
            fixed_length=shortest >= longest,
            eos_token_ids=tuple(eos_token_ids),
        )
        if self.kind != "generate" and 0 < shortest < longest:
            raise NestingError(
                f"min_new_tokens = {shortest} is less than max_new_tokens = {longest}, which sampler {self.kind} "
                "does not support; make them equal, leave min_new_tokens out, or set the sampler to generate"
            )
        if self.kind == "vllm":
            engine = self.vllm_engine_for(model, skipped, prompt_ids, sampling)
            return engine.sample(prompt_ids, sampling, seed, step, skipped, rows)
        if self.kind != "generate" and self.engine is None:
            self.engine = engine_for(model, self.kind, prompt_ids, sampling, skipped=skipped, dtype=self.dtype)
            self.kind = sampler_name(self.engine)
        if self.engine is None:
            with nested(model, skipped), torch.no_grad():
                return sample_by_generate(model, prompt_ids, generation_config, eos_token_ids)
        return self.engine.sample(prompt_ids, sampling, seed, step, skipped, rows=rows)

    def vllm_engine_for(
        self,
        model: PreTrainedModel,
        skipped: Sequence[int],
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingParams,
    ) -> NestedVllmEngine:
        """Return the engine of vLLM for this number of skipped layers, which is built and checked at its first use."""
        key = len(skipped), logprobs_mode_for(sampling)
        if key not in self.vllm_engines:
            engine = NestedVllmEngine(model, len(skipped), prompt_ids, sampling, self.dtype, self.sleeps)
            refuse_wrong_logps(engine, prompt_ids, skipped)
            self.vllm_engines[key] = engine
        return self.vllm_engines[key]


def sampler_name(engine: RolloutEngine | None) -> str:
    """Return the name of the sampler that this engine is; None stands for `generate`."""
    return "generate" if engine is None else "engine-compiled" if engine.compiled else "engine"


def engine_for(
    model: PreTrainedModel,
    sampler: str,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingParams,
    batch_size: int | None = None,
    skipped: Sequence[int] = (),
    dtype: torch.dtype | None = None,
) -> RolloutEngine | None:
    """Return the engine of this name, or the next sampler that supports the model; None stands for `generate`.

    The log says why an engine does not support the model.

    Args:
        model: the model to sample from.
        sampler: one of `SAMPLERS`.
        prompt_ids: the prompts of the first roll-out, with which engines are checked.
        sampling: the sampling distribution of that roll-out.
        batch_size: the batch size of that roll-out; None for all prompts.
        skipped: the layers that that roll-out skips.
        dtype: sample from a copy of the weights in this type; None samples from the weights themselves.
    """
    for kind, fallback in itertools.pairwise(SAMPLERS[SAMPLERS.index(sampler) :]):
        engine = RolloutEngine(model, kind == "engine-compiled", dtype)
        reason = unsupported_reason(engine, prompt_ids, sampling, batch_size, skipped)
        if reason is None:
            return engine
        logging.warning("sampler %s cannot be used, and %s is used instead: %s", kind, fallback, reason)
    return None
