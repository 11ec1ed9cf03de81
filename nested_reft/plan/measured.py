"""Measurements of `nested-reft bench` on the card that a study will use, as corrections of its planned times."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import ModelSource, Training
from nested_reft.errors import UserError
from nested_reft.model.shape import BENCH_SHAPES, ModelShape, read_shape
from nested_reft.plan.cards import Card
from nested_reft.plan.costs import Lengths, train_cost
from nested_reft.records.files import read_json

# The phases of a measured step -> those of a plan.
PHASES = {"generate": "generate", "fwd_bwd": "update", "optimizer": "optimizer"}
# The prompts of `bench train` are generated problems of about this many tokens.
PROMPT_TOKENS = 60


def measured_factors(files: list[Path], card: Card) -> dict[str, float]:
    """Return phase -> measured time over planned time, averaged over all measurements of the phase.

    Args:
        files: files that `bench rollout`, `bench train` or `bench/gpu.py` wrote on the card.
        card: the card.

    Raises:
        UserError: a file holds no such measurement.
    """
    found: dict[str, list[float]] = {}
    for file in files:
        try:
            factors = list(factors_of(read_json(file), card))
        except (ValueError, KeyError, TypeError, AttributeError):
            factors = []
        if not factors:
            raise UserError(f"--bench {file} was not written by `bench rollout`, `bench train` or bench/gpu.py")
        for phase, factor in factors:
            found.setdefault(phase, []).append(factor)
    return {phase: fmean(factors) for phase, factors in found.items()}


def factors_of(results: Mapping[str, Any], card: Card) -> Iterator[tuple[str, float]]:
    """Yield (phase, measured time over planned time) for each measurement of a file."""
    card = card.on_threads(results.get("threads", 1))
    if results["bench"] == "gpu":  # all parts in one file; those that did not fit into its time are null
        for rollouts in results["rollouts"]:
            if rollouts["generate"]:
                yield from factors_of({"bench": "rollout", **rollouts}, card)
        if results["train"]:
            yield from factors_of({"bench": "train", **results["train"]}, card)
    elif results["bench"] == "rollout":
        settings = results["settings"]
        tokens = settings["prompts"] * settings["generations"] * settings["new_tokens"]
        for sampler, speed in results["generate"]["tokens_per_second"].items():
            planned = planned_step(settings, sampler, settings["prompt_length"], card)
            yield "generate", tokens / speed["median"] / planned["generate"]
    elif results["bench"] == "train":
        for name, phases in results["phases"].items():
            sampler, _, skipped = name.partition(", k = ")
            if skipped == "0" and ", " not in sampler:  # the plan does not know a step with the update in bfloat16
                planned = planned_step(results["settings"], sampler, PROMPT_TOKENS, card)
                yield from ((PHASES[phase], phases[phase]["median"] / planned[PHASES[phase]]) for phase in PHASES)


def planned_step(settings: Mapping[str, Any], sampler: str, prompt: float, card: Card) -> dict[str, float]:
    """Return the planned time of each phase of the optimizer step that a benchmark measured.

    Args:
        settings: the settings of the benchmark.
        sampler: the sampler that was measured.
        prompt: the tokens of a prompt.
        card: the card.
    """
    shape = measured_shape(settings["model"])
    training = parse_settings(
        Training,
        {
            "max_steps": 1,
            "prompts_per_step": settings["prompts"],
            "num_generations": settings["generations"],
            "max_completion_length": settings["new_tokens"],
            "per_device_train_batch_size": math.gcd(16, settings["prompts"] * settings["generations"]),
            "sampler": sampler,
            "dtype": settings["dtype"],
            "bf16": card.is_gpu,
            "gradient_checkpointing": card.is_gpu,
        },
    )
    return train_cost(shape, training, Lengths(prompt, prompt, prompt), 0, card).seconds


def measured_shape(name: str) -> ModelShape:
    """Return the shape of a model that a benchmark measured.

    Raises:
        ValueError: the name belongs to no model, or to a model that the formulas do not cover.
    """
    shape = read_shape(BENCH_SHAPES.get(name) or ModelSource(path=name).shape)
    if shape is None:
        raise ValueError(f"the shape of {name} is unknown")
    return shape
