"""Measurements that users and reviewers can repeat: `nested-reft bench ...`.

What is compared runs in turns, so that a machine which warms up or gets busy moves all of it alike, and is judged
by the ratios within a turn. Here are the turns, their summary, and the grader; `bench_rollout.py`, `bench_train.py`
and `bench_eval.py` measure the rest.
"""

import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from nested_reft.errors import UserError
from nested_reft.records.provenance import provenance
from nested_reft.report.statistics import Floats, median_interval

if TYPE_CHECKING:
    import torch


CONFIDENCE = 0.95
T = TypeVar("T")


def run_interleaved(
    measures: Mapping[str, Callable[[int], T]], rounds: int
) -> tuple[list[list[str]], dict[str, list[T]]]:
    """Measure several variants in turns: each once to warm up, then rounds of all, every second one backwards.

    Args:
        measures: name -> what measures it, given the number of the round; the warm-up is the round after the last.
        rounds: how many are kept.

    Returns:
        The order of each round, and the samples of each variant, by round.
    """
    for measure in measures.values():
        measure(rounds)
    orders = [list(measures)[:: -1 if index % 2 else 1] for index in range(rounds)]
    samples: dict[str, list[T]] = {name: [] for name in measures}
    for index, order in enumerate(orders):
        for name in order:
            samples[name].append(measures[name](index))
    return orders, samples


def seconds(call: Callable[[], object], device: "torch.device") -> float:
    """Return how long the call takes, in seconds, with all that it leaves to a GPU."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


class Estimate(NamedTuple):
    """A median over rounds, and its bootstrap interval."""

    median: float
    ci_low: float
    ci_high: float


def estimate(values: Sequence[float] | Floats) -> dict[str, float]:
    """Return the median of values, one per round, and its interval."""
    return Estimate(float(np.median(values)), *median_interval(values, CONFIDENCE))._asdict()


def speed_up(baseline: Sequence[float], variant: Sequence[float]) -> dict[str, float]:
    """Return how many times faster a variant is than the baseline: an estimate from the ratios within rounds."""
    return estimate(np.divide(baseline, variant))


def quartiles(values: Sequence[float] | Floats) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"lower_quartile": float(low), "median": float(middle), "upper_quartile": float(high)}


def summarize(
    orders: Sequence[Sequence[str]], samples: Mapping[str, Sequence[float]], baseline: str
) -> dict[str, Any]:
    """Return the seconds of variants as they were measured, their quartiles, and speed-ups against the baseline."""
    return {
        "baseline": baseline,
        "orders": [list(order) for order in orders],
        "seconds": {name: list(values) for name, values in samples.items()},
        "quartiles": {name: quartiles(values) for name, values in samples.items()},
        "speed_up": {
            name: speed_up(samples[baseline], values) for name, values in samples.items() if name != baseline
        },
    }


def environment_info(device: "torch.device") -> dict[str, Any]:
    """Return what a measurement depends on beside its settings: code, packages, hardware, threads."""
    import torch

    return {"provenance": provenance(), "device": str(device), "threads": torch.get_num_threads()}


def peak_memory(calls: Mapping[str, Callable[[], object]], device: "torch.device") -> dict[str, Any]:
    """Return the most memory held during each call in GiB.

    On a GPU that includes what was held before, which is told too: the difference is what the call adds. On a CPU
    only the peak of the whole process so far is known.
    """
    import torch

    peak, held = {}, {}
    for name, call in calls.items():
        if device.type == "cuda":
            held[name] = torch.cuda.memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        call()
        if device.type == "cuda":
            peak[name] = torch.cuda.max_memory_allocated() / 2**30
    if device.type == "cuda":
        return {"of": "tensors on the GPU, while each variant runs", "gib": peak, "held_before_gib": held}
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"of": "the whole process, from its start (ru_maxrss)", "gib": {"process": process}}


def overhead(resources: Path, cores: int) -> dict[str, float]:
    """Return how much of the machine a finished study left idle, from the resource tables that Snakemake writes.

    overhead = 1 - (sum of the seconds of all stages) / (wall time x cores), for stages of one thread. The seconds
    of a stage are those of its process, start-up included; its end is when its table was written.

    Args:
        resources: `benchmarks/<study>`, with one table per job.
        cores: that the study ran on.

    Raises:
        UserError: if there are no tables.
    """
    tables = sorted(resources.rglob("*.tsv"))
    if not tables:
        raise UserError(f"{resources} holds no resource tables; give benchmarks/<study> of a study that ran here")
    ends = [table.stat().st_mtime for table in tables]
    busy = [float(table.read_text().splitlines()[-1].split("\t")[0]) for table in tables]
    wall = max(ends) - min(end - seconds for end, seconds in zip(ends, busy, strict=True))
    return {
        "jobs": len(tables),
        "stage_s": sum(busy),
        "wall_s": wall,
        "cores": cores,
        "overhead": 1 - sum(busy) / (wall * cores),
    }


def as_json(results: Any) -> str:
    """Return results as one line of JSON."""
    return json.dumps(results, sort_keys=True)
