"""The rounds of a measurement and their summary, which all commands `nested-reft bench ...` share.

Variants run interleaved, and speed-ups are ratios within a round, so machine drift cancels.
"""

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from nested_reft.errors import UserError
from nested_reft.records.provenance import collect_provenance
from nested_reft.report.statistics import Floats, median_interval

if TYPE_CHECKING:
    import torch

CONFIDENCE = 0.95  # of the intervals of medians
T = TypeVar("T")


def run_interleaved(
    measures: Mapping[str, Callable[[int], T]], rounds: int
) -> tuple[list[list[str]], dict[str, list[T]]]:
    """Measure several variants interleaved: each once to warm up, then all in each round, in alternating order.

    Args:
        measures: name -> the function that measures this variant, called with the index of the round. The warm-up is
            called with the index after the last.
        rounds: the number of rounds, without the warm-up.

    Returns:
        The order of the variants in each round, and the samples of each variant, one per round.
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
    """Return the duration of the call in seconds, until the GPU has finished the work that it started."""
    import torch

    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


class ProcessUsage(NamedTuple):
    """What a process took: wall time, CPU time, which is less on a busy machine, and peak memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run_process(
    command: Sequence[str], directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> ProcessUsage:
    """Run a command and return what its process took.

    Args:
        command: the command and its arguments.
        directory: the working directory; by default that of this process.
        environment: variables that are set for the command, beside those of this process.

    Raises:
        UserError: the command fails; the message ends with its output.
    """
    with tempfile.TemporaryFile("w+") as output:
        variables = os.environ | dict(environment or {})
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, env=variables, stdout=output, stderr=subprocess.STDOUT)
        # wait4 gives the memory of this one process; `resource.getrusage` gives the largest of all children so far.
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise UserError(f"`{' '.join(command)}` failed: {output.read()[-2000:]}")
    return ProcessUsage(elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


class Estimate(NamedTuple):
    """A median over rounds, and its bootstrap interval."""

    median: float
    ci_low: float
    ci_high: float


def estimate(values: Sequence[float] | Floats) -> dict[str, float]:
    """Return the median of values, one per round, and its interval."""
    return Estimate(float(np.median(values)), *median_interval(values, CONFIDENCE))._asdict()


def speed_up(baseline: Sequence[float], variant: Sequence[float]) -> dict[str, float]:
    """Return how many times as fast as the baseline a variant is, estimated from the ratios within rounds."""
    return estimate(np.divide(baseline, variant))


def quartiles(values: Sequence[float] | Floats) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"lower_quartile": float(low), "median": float(middle), "upper_quartile": float(high)}


def summarize(
    orders: Sequence[Sequence[str]], samples: Mapping[str, Sequence[float]], baseline: str
) -> dict[str, Any]:
    """Return the measured seconds of the variants, their quartiles, and their speed-ups over the baseline."""
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
    """Return the code, packages, hardware and threads that a measurement depends on besides its settings."""
    import torch

    return {"provenance": collect_provenance(), "device": str(device), "threads": torch.get_num_threads()}


def peak_memory(calls: Mapping[str, Callable[[], object]], device: "torch.device") -> dict[str, Any]:
    """Return the peak memory of each call in GiB.

    On a GPU the peak includes memory that was held before the call. `held_before_gib` lists that memory, so the
    difference is what the call adds. On a CPU only the peak of the whole process up to now is known.
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


def as_json(results: Any) -> str:
    """Return results as one line of JSON."""
    return json.dumps(results, sort_keys=True)
