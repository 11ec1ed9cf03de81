"""The one call by which training samples completions: an engine or, where the model is not covered, `generate`."""

import itertools
import logging
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from nested_reft.errors import NestingError
from nested_reft.model.layers import nested
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.generate import refuse_filters, sample
from nested_reft.rollout.sampling import Sampling
from nested_reft.rollout.self_check import unsupported_reason


def engine_for(
    model: PreTrainedModel,
    sampler: str,
    prompt_ids: Sequence[Sequence[int]],
    sampling: Sampling,
    num_rows: int | None = None,
    dtype: torch.dtype | None = None,
) -> RolloutEngine | None:
    """Return the engine that was asked for or, with the reason in the log, a plainer one; None means `generate`.

    Args:
        model: the model to sample from.
        sampler: `engine-compiled`, `engine` or `generate`.
        prompt_ids: some prompts, on which an engine is tried.
        sampling: how they will be sampled.
        num_rows: the rows of a batch, if not all prompts.
        dtype: of a copy of the weights to sample from, if not the weights.
    """
    samplers = ["engine-compiled", "engine", "generate"]
    for kind, plainer in itertools.pairwise(samplers[samplers.index(sampler) :]):
        engine = RolloutEngine(model, kind == "engine-compiled", dtype)
        reason = unsupported_reason(engine, prompt_ids, sampling, num_rows)
        if reason is None:
            return engine
        logging.warning("sampler %s cannot be used, %s is instead: %s", kind, plainer, reason)
    return None


class Sampler:
    """Draws the completions of training, batch by batch.

    Args:
        kind: `engine-compiled`, `engine` or `generate`.
        dtype: of a copy of the weights to sample from, if not the weights; an engine's only.
    """

    def __init__(self, kind: str, dtype: torch.dtype | None = None) -> None:
        self.kind, self.dtype = kind, dtype
        self.engine: RolloutEngine | None = None

    def sample(
        self,
        model: PreTrainedModel,
        skipped: Sequence[int],
        prompt_ids: list[list[int]],
        generation_config: GenerationConfig,
        eos_token_ids: list[int],
        seed: int,
        step: int,
        first_row: int = 0,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt from the model without its skipped layers.

        What an engine draws is a function of (seed, step, number of the row); `generate` draws from the global
        random state.

        Returns:
            B completions, each up to and including its first end token, and for each of their tokens
            log mu(a_t).
        """
        refuse_filters(generation_config, model.generation_config)
        length, shortest = generation_config.max_new_tokens, generation_config.min_new_tokens or 0
        sampling = Sampling(
            length, generation_config.temperature, fixed_length=shortest >= length, eos_token_ids=tuple(eos_token_ids)
        )
        if self.kind != "generate" and self.engine is None:
            if 0 < shortest < length:
                raise NestingError(
                    f"min_new_tokens = {shortest} is less than max_new_tokens = {length}, which sampler {self.kind} "
                    "does not know; make them equal, leave it out, or take sampler generate"
                )
            self.engine = engine_for(model, self.kind, prompt_ids, sampling, dtype=self.dtype)
            self.kind = "generate" if self.engine is None else "engine-compiled" if self.engine.compiled else "engine"
        if self.engine is None:
            with nested(model, skipped), torch.no_grad():
                return sample(model, prompt_ids, generation_config, eos_token_ids)
        return self.engine.sample(prompt_ids, sampling, seed, step, skipped, first_row=first_row)
