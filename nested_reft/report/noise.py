"""Where the noise of an accuracy comes from: the seed of a training, the choice of problems, the sampling of answers.

The layout of a benchmark has random effects:

    share of right samples = mean + seed + problem + seed x problem + sampling

A seed shifts all problems together, a problem is harder for all seeds, and the model of a seed solves other problems
than that of another seed. A delta has the same layout as an accuracy. What a study cannot distinguish stays together:
with one sample per problem, sampling is a part of seed x problem; with one seed, seed x problem is a part of problem.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from nested_reft.report.sources import Sources
from nested_reft.report.statistics import ROUNDING, Floats, macro_average
from nested_reft.report.trend_table import scores_of_cells
from nested_reft.report.variance import residual_variance

ACCURACY, DELTA = "accuracy of a run", "delta of a seed"
ALL_BENCHMARKS = "mean over benchmarks"
NOISE = ["quantity", "benchmark", "problems", "seeds", "samples"]
NOISE += ["seed", "choice_of_problems", "seed_x_problem", "sampling", "total", "not_estimated"]
# What a study cannot estimate, by whether it has several seeds and several samples per problem.
NOT_ESTIMATED = {
    (True, True): "",
    (True, False): "sampling, a part of seed x problem",
    (False, True): "seed; seed x problem, a part of choice of problems",
    (False, False): "seed; seed x problem and sampling, parts of choice of problems",
}
# More samples per problem are recommended as long as they lower the standard error of a delta by more than this share.
TOLERANCE = 0.05


class Noise(NamedTuple):
    """The variances of the effects of one benchmark, or of the macro average; NaN for what cannot be estimated.

    An estimate may be below zero, if the effect is smaller than what the data can show.

    Attributes:
        seed: between seeds, of all problems together.
        problem: between problems, which neither more seeds nor more samples remove, per problem.
        interaction: seed x problem, per problem of one seed.
        sampling: between the samples of one model for one problem, per sample.
    """

    seed: float
    problem: float
    interaction: float
    sampling: float


class Scored(NamedTuple):
    """The scores of a run or the differences of a delta, for all seeds.

    Attributes:
        scores: (seeds, n), the share of right samples, or a difference of two; NaN marks a missing run.
        within: (n,), the variance of a single sample of each problem, or the sum of two; NaN with one sample.
    """

    scores: Floats
    within: Floats


def sampling_variance(scores: Floats, samples: int) -> Floats:
    """Return the unbiased variance (n,) of a single sample of each problem, the mean over seeds; NaN with one sample.

    Args:
        scores: the share of right samples, (seeds, n).
        samples: completions per problem.
    """
    if samples == 1:
        return np.full(scores.shape[1], np.nan)
    variance: Floats = (scores * (1 - scores)).mean(axis=0) * samples / (samples - 1)
    return variance


def benchmark_noise(scored: Scored, samples: int) -> Noise:
    """Return the variances of the effects of one benchmark, from the mean squares of the layout.

    Args:
        scored: the scores of at least one seed and two problems, without missing runs.
        samples: completions per problem.
    """
    seeds, n = scored.scores.shape
    sampling = float(scored.within.mean())
    per_problem = float(scored.scores.mean(axis=0).var(ddof=1))
    of_samples = 0.0 if samples == 1 else sampling / samples
    if seeds == 1:
        return Noise(math.nan, per_problem - of_samples, math.nan, sampling)
    residual = residual_variance(scored.scores)
    seed = float(scored.scores.mean(axis=1).var(ddof=1)) - residual / n
    return Noise(seed, per_problem - residual / seeds, residual - of_samples, sampling)


def macro_noise(scored: Scored, benchmarks: npt.NDArray[np.str_], samples: int) -> list[Noise]:
    """Return the noise of each benchmark, and last that of their unweighted mean.

    A seed may shift several benchmarks together, so that the seed variance of the mean is estimated from the mean. Its
    other variances are those of a mean of equally many problems and samples, so they add up from the benchmarks.

    Args:
        scored: the scores, without missing runs.
        benchmarks: the benchmark of each problem, (n,).
        samples: completions per problem.
    """
    names, sizes = np.unique(benchmarks, return_counts=True)
    found = []
    for name in names:
        chosen = benchmarks == name
        found.append(benchmark_noise(Scored(scored.scores[:, chosen], scored.within[chosen]), samples))
    parts = np.array(found)[:, 1:] / sizes[:, None]  # (benchmarks, 3), of the accuracy of each benchmark
    problem, interaction, sampling = parts.sum(axis=0) / len(names) ** 2
    seed = math.nan
    if len(scored.scores) > 1:
        of_samples = 0.0 if samples == 1 else sampling / samples
        seed = float(macro_average(scored.scores, benchmarks).var(ddof=1)) - interaction - of_samples
    return [*found, Noise(seed, problem, interaction, sampling)]


def runs_and_deltas(scores: Floats, samples: int) -> Iterator[tuple[str, Scored]]:
    """Yield (quantity, scores) of each run of a cell over its seeds, and of each delta to the baseline.

    Args:
        scores: (1 + instances, seeds, n), the baseline first; NaN marks a missing run.
        samples: completions per problem.
    """
    for place, row in enumerate(scores):
        present = ~np.isnan(row).any(axis=1)
        if present.any():
            yield ACCURACY, Scored(row[present], sampling_variance(row[present], samples))
        paired = present & ~np.isnan(scores[0]).any(axis=1)
        if place and paired.any():
            own, baseline = row[paired], scores[0, paired]
            within = sampling_variance(own, samples) + sampling_variance(baseline, samples)
            yield DELTA, Scored(own - baseline, within)


def mean_noise(
    scored: Sequence[Scored], benchmarks: npt.NDArray[np.str_], samples: int
) -> tuple[int, list[Noise]] | None:
    """Return the most seeds of a run, and the noise of each benchmark and of their mean, averaged over runs.

    Runs with a single seed count only where no run has more, because their estimates mean something else.

    Args:
        scored: the runs, or the deltas, without missing seeds.
        benchmarks: the benchmark of each problem, (n,).
        samples: completions per problem.

    Returns:
        None without a run, or where a benchmark has a single problem.
    """
    if not scored or np.unique(benchmarks, return_counts=True)[1].min() < 2:
        return None
    seeds = max(len(one.scores) for one in scored)
    kept = [one for one in scored if len(one.scores) > 1 or seeds == 1]
    means = np.mean([macro_noise(one, benchmarks, samples) for one in kept], axis=0)  # (benchmarks + 1, 4)
    return seeds, [Noise(*map(float, row)) for row in means]


def study_noise(sources: Sources, quantity: str) -> tuple[npt.NDArray[np.str_], int, int, list[Noise]] | None:
    """Return the benchmark of each problem, the seeds, the samples and the noise of a study, or None without runs.

    Args:
        sources: the sources of its report.
        quantity: ACCURACY or DELTA.
    """
    cells = list(scores_of_cells(sources))
    if not cells:
        return None
    benchmarks, samples = cells[0].benchmarks, min(cell.samples for cell in cells)
    scored = [one for cell in cells for name, one in runs_and_deltas(cell.scores, samples) if name == quantity]
    found = mean_noise(scored, benchmarks, samples)
    return (benchmarks, found[0], samples, found[1]) if found else None


def spread_of(variance: float) -> float:
    """Return a standard deviation; 0 where the estimate of the variance is zero, but for rounding, or below."""
    if math.isnan(variance):
        return math.nan
    return math.sqrt(variance) if variance > ROUNDING else 0.0


def noise_table(sources: Sources) -> pd.DataFrame:
    """Return what each source of noise adds to the accuracy of a run and to a delta, per benchmark, in shares.

    The numbers are standard deviations of the accuracy on the problems of the benchmark with the samples of the study,
    for a single seed. Their squares add up to that of `total`.
    """
    rows: list[dict[str, Any]] = []
    for quantity in (ACCURACY, DELTA):
        found = study_noise(sources, quantity)
        if found is None:
            continue
        benchmarks, seeds, samples, noises = found
        names, sizes = np.unique(benchmarks, return_counts=True)
        for name, size, noise in zip([*names, ALL_BENCHMARKS], [*sizes, 1], noises, strict=True):
            parts = [noise.seed, noise.problem / size, noise.interaction / size, noise.sampling / size / samples]
            row = {
                "quantity": quantity,
                "benchmark": name,
                "problems": int(size if name != ALL_BENCHMARKS else sizes.sum()),
                "seeds": seeds,
                "samples": samples,
            }
            row |= dict(zip(NOISE[5:9], map(spread_of, parts), strict=True))
            total = sum(max(0.0, part) for part in parts if not math.isnan(part))
            rows.append(row | {"total": math.sqrt(total), "not_estimated": NOT_ESTIMATED[seeds > 1, samples > 1]})
    return pd.DataFrame(rows).reindex(columns=NOISE)


def enough_samples(rest: float, sampling: float) -> int:
    """Return the fewest samples per problem beyond which the standard error falls by less than TOLERANCE.

    Args:
        rest: the variance of a delta without sampling.
        sampling: the variance that one sample per problem adds.
    """
    if sampling <= 0:
        return 1
    allowed = ((1 / (1 - TOLERANCE)) ** 2 - 1) * rest
    return max(1, math.ceil(sampling / allowed)) if allowed > 0 else 0


def noise_facts(table: pd.DataFrame, num_seeds: int) -> dict[str, Any]:
    """Return the row of the table for the macro average of a delta, and the samples per problem that are enough.

    `enough_samples` is 0 if nothing limits it, and None with one seed and one sample per problem. With several seeds
    and one sample per problem it is an upper limit, as if all of seed x problem were sampling.

    Args:
        table: the table of `noise_table`.
        num_seeds: the seeds of the study, over which a delta is averaged.
    """
    chosen = table[(table["quantity"] == DELTA) & (table["benchmark"] == ALL_BENCHMARKS)]
    if chosen.empty:
        return {"noise_of_delta": None}
    row = chosen.iloc[0].to_dict()
    variances = {name: 0.0 if math.isnan(row[name]) else row[name] ** 2 for name in NOISE[5:9]}
    enough: int | None = None
    if row["samples"] > 1:
        rest = (variances["seed"] + variances["seed_x_problem"]) / num_seeds + variances["choice_of_problems"]
        enough = enough_samples(rest, variances["sampling"] * row["samples"] / num_seeds)
    elif row["seeds"] > 1:
        rest = variances["seed"] / num_seeds + variances["choice_of_problems"]
        enough = enough_samples(rest, variances["seed_x_problem"] / num_seeds)
    return {"noise_of_delta": row, "enough_samples": enough, "tolerance": TOLERANCE}
