"""Measurements that users and reviewers can repeat: `nested-reft bench ...`.

What is compared runs in turns, so that a machine which warms up or gets busy moves all of it alike, and is judged
by the ratios within a turn. Here are the turns, their summary, and the grader; `bench_rollout.py`, `bench_train.py`
and `bench_eval.py` measure the rest.
"""

import json
import random
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from nested_reft.config.sections import ConfigError
from nested_reft.grading import algebra as symbolic
from nested_reft.grading.compare import grade, is_correct
from nested_reft.records.mlflow_mirror import provenance, read_rows
from nested_reft.report.statistics import Floats, median_interval

if TYPE_CHECKING:
    import torch

CONFIDENCE = 0.95
T = TypeVar("T")

# Answers of the kinds that benchmarks hold, each with another spelling of it and with a wrong one.
MIXED = [
    (r"\frac{3}{4}", "0.75", r"\frac{4}{3}"),
    (r"2\sqrt{13}", r"\sqrt{52}", r"2\sqrt{12}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", r"(3, -\frac{\pi}{2})"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)", r"(-\infty, 2] \cup (3, \infty)"),
    ("1, -2, 5", "5, 1, -2", "1, -2"),
    (r"x^2 - 4x + 7", "7 - 4x + x^2", "x^2 + 4x + 7"),
    (r"\begin{pmatrix} -2 \\ 5 \end{pmatrix}", r"\begin{bmatrix}-2\\5\end{bmatrix}", r"\begin{bmatrix}2\\5\end{bmatrix}"),  # noqa: E501
    (r"8.7 \times 10^{8}", "8.7e8", r"8.7 \times 10^{9}"),
    (r"\text{Monday}", "monday", r"\text{Tuesday}"),
    ("12,345", "12345", "12346"),
    (r"50\%", "0.5", r"5\%"),
    (r"\frac{1}{2 n+2}", r"\frac{1}{2(n+1)}", r"\frac{1}{2 n+1}"),
    ("y = 2x + 1", "2x - y + 1 = 0", "y = 2x - 1"),
    (r"3 \pm 2\sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2", r"3+2\sqrt{2}"),
    (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}", r"\frac{n(n-1)}{2}"),
    (r"120^\circ", "120", "60"),
]  # fmt: skip


def rate(rows: Sequence[tuple[str, Any]], repeats: int) -> dict[str, float]:
    """Return answers graded in a second, median and spread over repeats; nothing is remembered between them."""
    rates = []
    for _ in range(repeats):
        symbolic.forget()
        is_correct(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")  # the child of the algebra is up
        started = time.perf_counter()
        for completion, answer in rows:
            grade(completion, answer)
        rates.append(len(rows) / (time.perf_counter() - started))
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates), "rows": len(rows)}


def bench_grade(benchmarks: Path | None, repeats: int) -> dict[str, dict[str, float]]:
    """Measure the grader on plain numbers, on answers of all kinds, and on the gold answers of prepared benchmarks.

    Args:
        benchmarks: a file of `prepare benchmarks`; each of its answers is graded as it is and perturbed.
        repeats: how often each is measured.
    """
    draw = random.Random(0)
    numbers = [str(draw.randrange(-(10**6), 10**6)) for _ in range(5000)]
    plain = [
        (f"So the answer is \\boxed{{{number}}}.", number if draw.random() < 0.5 else str(int(number) + 1))
        for number in numbers
    ]
    mixed = [(f"\\boxed{{{spelling}}}", answer) for answer, *others in MIXED for spelling in (answer, *others)]
    results = {"plain numbers": rate(plain, repeats), "all kinds, right and wrong": rate(mixed, repeats)}
    if benchmarks is not None:
        answers = [row["answer"] for row in read_rows(benchmarks)]
        rows = [(f"\\boxed{{{answer[0]}}}", answer) for answer in answers]
        rows += [(f"\\boxed{{{perturbed(answer[0])}}}", answer) for answer in answers]
        results["benchmarks, right and perturbed"] = rate(rows, repeats)
    return results


def perturbed(answer: str) -> str:
    """Return the answer with its last digit one higher, or, if it has none, negative."""
    changed = re.sub(r"\d(?=\D*$)", lambda match: str((int(match[0]) + 1) % 10), answer)
    return changed if changed != answer else f"-{answer}"


def interleave(measures: Mapping[str, Callable[[int], T]], rounds: int) -> tuple[list[list[str]], dict[str, list[T]]]:
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


def surroundings(device: "torch.device") -> dict[str, Any]:
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
        ConfigError: if there are no tables.
    """
    tables = sorted(resources.rglob("*.tsv"))
    if not tables:
        raise ConfigError(f"{resources} holds no resource tables; give benchmarks/<study> of a study that ran here")
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
