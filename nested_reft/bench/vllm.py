"""The speed of nested roll-outs by vLLM, against `generate` and the engine, and the time of a push."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from nested_reft.bench.harness import environment_info, estimate, quartiles, run_interleaved, seconds, summarize
from nested_reft.bench.rollout import RolloutBenchSettings, Rollouts, bench_device, load, skip_counts
from nested_reft.errors import NestingError, UserError
from nested_reft.rollout.vllm import NestedVllmEngine, check_installed, refuse_wrong_logps


def measure_vllm(settings: RolloutBenchSettings) -> dict[str, Any]:
    """Measure roll-outs by vLLM, which begin with the push of the weights, and a push alone.

    Raises:
        UserError: vLLM is not installed, or vLLM or the sampler that it is compared with does not support the model.
    """
    check_installed("the measured sampler")
    device = bench_device()
    model, tokenizer = load(settings.model, settings.dtype, device)
    rollouts = Rollouts(settings, model, tokenizer, skip_counts(model, settings.skip_ratios, settings.model))
    counts = [0, *rollouts.counts.values()]
    calls: dict[str, Callable[[int], object]] = {
        "generate": rollouts.by_generate,
        settings.sampler: partial(rollouts.by_sampler, settings.sampler),
    }
    for count in counts:
        engine = checked_engine(rollouts, count)
        calls[name_of(count)] = partial(sample, rollouts, engine)
        calls[f"push, {name_of(count)}"] = partial(push, rollouts, engine)

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), device)

    orders, samples = run_interleaved({name: partial(measure, name) for name in calls}, settings.rounds)
    names = list(map(name_of, counts))
    return {
        "bench": "vllm",
        "settings": asdict(settings),
        **environment_info(device),
        "rollouts": summarize(orders, {name: samples[name] for name in calls if "push" not in name}, "generate"),
        "pushes": {name: quartiles(samples[f"push, {name}"]) for name in names},
        "share_of_push": {name: estimate(np.divide(samples[f"push, {name}"], samples[name])) for name in names},
    }


def name_of(count: int) -> str:
    """Return the name of the roll-outs by vLLM that skip this number of layers."""
    return f"vllm, k = {count}"


def checked_engine(rollouts: Rollouts, count: int) -> NestedVllmEngine:
    """Return an engine of vLLM for this number of skipped layers, whose log-probs were checked.

    Raises:
        UserError: vLLM does not support the model.
    """
    prompts = rollouts.prompts(0)
    try:
        engine = NestedVllmEngine(rollouts.model, count, prompts, rollouts.sampling)
        refuse_wrong_logps(engine, prompts, rollouts.skipped_layers(count, 0))
    except NestingError as error:
        raise UserError(f"vLLM cannot be measured: {error}") from None
    return engine


def sample(rollouts: Rollouts, engine: NestedVllmEngine, index: int) -> None:
    """Sample roll-out `index`, the push of the weights included."""
    skipped = rollouts.skipped_layers(engine.num_skipped, index)
    engine.sample(rollouts.prompts(index), rollouts.sampling, 0, index, skipped)


def push(rollouts: Rollouts, engine: NestedVllmEngine, index: int) -> None:
    """Push the weights of roll-out `index`."""
    engine.push(rollouts.skipped_layers(engine.num_skipped, index))
