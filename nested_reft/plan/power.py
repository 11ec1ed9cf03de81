"""What a study can find out: its power, the seeds that it needs, and how to spend a budget.

The test is that of a report. A delta of several seeds is compared with Student's t, whose variance is that of the
seeds, pooled over the instances of a cell, and that of the problems. A delta of one seed is compared with its own
differences between problems, and then describes two trained models. Both are corrected by Holm's first step, in which
p is multiplied by the number of instances of a cell: the results hold for a single instance with an effect.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from nested_reft.config.study import instances
from nested_reft.errors import UserError
from nested_reft.report.noise import DELTA, study_noise
from nested_reft.report.sources import Sources, read_sources
from nested_reft.report.statistics import ROUNDING, Floats, change_per_sample
from nested_reft.report.variance import Estimates, satterthwaite

POWER = 0.8  # the probability with which a delta is to be found
MORE_SEEDS = (2, 3, 5, 10, 20)  # numbers of seeds to compare with
MOST_SEEDS = 1000  # the search for a number of seeds ends here
# The steps of the search for an allocation.
SAMPLES = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the problems of each benchmark
STUDIES = 1024  # draws of what a study estimates, a power of two


class Pilot(NamedTuple):
    """The variances of a delta, in the layout of `nested_reft.report.noise`.

    Attributes:
        seed: of the mean over benchmarks, between seeds; NaN if unknown.
        problem: per problem, (benchmarks,); or (1,) for all benchmarks alike.
        interaction: seed x problem, per problem of one seed, of the same shape; NaN if it is unknown, and a part of
            `problem`.
        sampling: per sample of a problem, of the same shape; NaN if it is unknown, and a part of `interaction`.
        source: where the variances come from.
    """

    seed: float
    problem: Floats
    interaction: Floats
    sampling: Floats
    source: str


class Design(NamedTuple):
    """A study, or one that is planned.

    Attributes:
        seeds: the number of seeds.
        samples: completions per problem.
        sizes: the number of problems of each benchmark.
        instances: the instances of a cell, without the baseline.
        confidence: a p below 1 - confidence is significant.
        margin: the smallest change of the accuracy that matters, a share.
    """

    seeds: int
    samples: int
    sizes: tuple[int, ...]
    instances: int
    confidence: float
    margin: float


class Error(NamedTuple):
    """The standard error of a delta, NaN if unknown, and the estimates from which a study knows its square.

    The first of the estimates is that of the seeds, and the others are those of the problems.
    """

    size: float
    parts: Estimates


def standard_error(pilot: Pilot, design: Design) -> Error:
    """Return the standard error that the test of a study knows; with one seed it does not contain the seed.

    More samples than the pilot's lower it only if the variance of sampling is known.
    """
    sizes, more_seeds = np.array(design.sizes, dtype=float), design.seeds - 1
    of_mean = 1 / sizes / len(sizes) ** 2  # (benchmarks,), of a variance per problem in the macro average
    # What is unknown is a part of another variance.
    interaction, sampling = (np.nan_to_num(values, nan=0.0) for values in (pilot.interaction, pilot.sampling))
    residuals = (np.maximum(0.0, interaction) + sampling / design.samples) * of_mean / design.seeds
    problems = np.maximum(0.0, pilot.problem) * of_mean
    if not more_seeds:
        variance = float((problems + residuals).sum())
        return Error(max(math.sqrt(variance), ROUNDING), Estimates(np.array([variance]), np.array([np.inf])))
    of_seeds = float(np.maximum(0.0, pilot.seed) / design.seeds + residuals.sum())  # `max` would turn NaN into 0
    # The report estimates the variance of the problems by a difference, as in `problem_variance`.
    variances = np.concatenate([[of_seeds], problems + residuals, -residuals])
    freedoms = np.concatenate([[design.instances * more_seeds], sizes - 1, more_seeds * (sizes - 1)])
    return Error(max(math.sqrt(of_seeds + problems.sum()), ROUNDING), Estimates(variances, freedoms))


@cache
def evenly_spread(dimensions: int) -> Floats:
    """Return points (STUDIES, dimensions) of the unit cube that are spread more evenly than random ones."""
    from scipy.stats import qmc  # takes half a second to import

    points: Floats = qmc.Sobol(dimensions, rng=0).random(STUDIES)
    return points


def estimated_errors(error: Error) -> tuple[Floats, Floats]:
    """Return standard errors that studies estimate (STUDIES,), and the degrees of freedom that they count with.

    Each estimate of a variance is drawn from its chi-square distribution.
    """
    variances, freedoms = error.parts
    if np.isinf(freedoms).all():
        return np.array([error.size]), np.array([np.inf])
    drawn = variances * special.chdtri(freedoms, evenly_spread(len(freedoms))) / freedoms
    variance = drawn[:, 0] + np.maximum(0.0, drawn[:, 1:].sum(axis=1))
    return np.sqrt(variance), satterthwaite(variance, Estimates(drawn, freedoms))


def critical_shifts(error: Error, design: Design) -> Floats:
    """Return from which delta on, in true standard errors, studies (STUDIES,) find it, after Holm's correction."""
    errors, freedoms = estimated_errors(error)
    level = (1 - design.confidence) / design.instances
    shifts: Floats = special.stdtrit(freedoms, 1 - level / 2) * errors / error.size
    return shifts


def share_found(shift: Floats, critical: Floats) -> Floats:
    """Return the share of studies that find a delta of `shift` (...) true standard errors."""
    shift = shift[..., None]
    found: Floats = (special.ndtr(shift - critical) + special.ndtr(-shift - critical)).mean(axis=-1)
    return found


def power(delta: npt.ArrayLike, error: Error, design: Design) -> Floats:
    """Return the probability with which a true delta (...) is found to differ from zero, after Holm's correction."""
    return share_found(np.abs(np.asarray(delta, dtype=float)) / error.size, critical_shifts(error, design))


def equivalence_power(delta: float, error: Error, design: Design) -> float:
    """Return the probability with which a true delta is called equivalent, after Holm's correction.

    The p of the report is at least that of the rarest change that reaches the margin, as in `equivalence_p`.
    """
    level = (1 - design.confidence) / design.instances
    per_sample = change_per_sample(design.sizes, design.samples)
    rarest = design.margin / per_sample  # samples that change
    if special.gammaincc(1, rarest) >= level:  # not even a delta of zero is equivalent
        return 0.0
    errors, freedoms = estimated_errors(error)
    critical = special.stdtrit(freedoms, 1 - level) * errors
    reach = np.minimum(design.margin - critical, per_sample * special.pdtrik(level, rarest)) / error.size
    shift = delta / error.size
    found = special.ndtr(reach - shift) - special.ndtr(-reach - shift)
    return float(np.where(reach > 0, found, 0.0).mean())


def smallest_delta(pilot: Pilot, design: Design, wanted: float = POWER) -> float:
    """Return the true delta that is found with the wanted probability; NaN if the seed variance is needed and unknown.

    The sign of a delta that is found is right but for a negligible share of the studies.
    """
    error = standard_error(pilot, design)
    if math.isnan(error.size):
        return math.nan
    critical = critical_shifts(error, design)
    low, high = 0.0, 1.0
    while share_found(np.array(high), critical) < wanted:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if share_found(np.array(middle), critical) < wanted else (low, middle)
    return high * error.size


def seeds_for_margin(pilot: Pilot, design: Design, wanted: float = POWER) -> int | None:
    """Return the fewest seeds, at least 2, with which no change at all is called equivalent; None if none suffice."""

    def enough(seeds: int) -> bool:
        changed = design._replace(seeds=seeds)
        return equivalence_power(0.0, standard_error(pilot, changed), changed) >= wanted

    if math.isnan(pilot.seed) or not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def false_claims(pilot: Pilot, design: Design) -> float:
    """Return how often one seed shows a difference of two methods that differ in nothing but their seeds.

    The test of one seed compares two trained models, which the seeds make different.
    """
    error = standard_error(pilot, design._replace(seeds=1))
    critical = special.ndtri(1 - (1 - design.confidence) / design.instances / 2)
    spread = math.sqrt(error.size**2 + np.maximum(0.0, pilot.seed))
    return float(2 * special.ndtr(-critical * error.size / spread))


class Costs(NamedTuple):
    """The time of a study in seconds: of a training, and of the evaluation of one sample of one problem."""

    training: float
    answer: float


class Allocation(NamedTuple):
    """A way to spend a budget, what it costs in seconds per cell, and the smallest delta that it finds."""

    design: Design
    seconds: float
    delta: float


def cell_seconds(design: Design, costs: Costs) -> float:
    """Return the time of all runs of a cell: its instances and its baseline with all seeds, and their evaluations."""
    evaluation = sum(design.sizes) * design.samples * costs.answer
    return design.seeds * (1 + design.instances) * (costs.training + evaluation)


def allocations(pilot: Pilot, design: Design, costs: Costs, budget: float) -> Iterator[Allocation]:
    """Yield how a budget can be spent: for each number of samples and of problems, on as many seeds as it pays for.

    One seed is left out, because it says nothing about other seeds. More samples are tried only if the pilot shows
    what sampling adds.

    Args:
        pilot: the variances of a delta.
        design: the study, whose benchmarks have all problems that there are.
        costs: the time of its parts.
        budget: seconds for a cell.
    """
    for samples in (design.samples,) if np.isnan(pilot.sampling).any() else SAMPLES:
        for share in SHARES:
            sizes = tuple(max(2, round(share * size)) for size in design.sizes)
            changed = design._replace(seeds=1, samples=samples, sizes=sizes)
            seeds = min(MOST_SEEDS, int(budget / cell_seconds(changed, costs) + 1e-9))
            if seeds > 1:
                changed = changed._replace(seeds=seeds)
                yield Allocation(changed, cell_seconds(changed, costs), smallest_delta(pilot, changed))


def best_allocation(found: list[Allocation]) -> Allocation | None:
    """Return the cheapest of the allocations whose smallest delta is within 1 % of the smallest of all."""
    if not found:
        return None
    smallest = min(one.delta for one in found)
    return min((one for one in found if one.delta <= 1.01 * smallest), key=lambda one: one.seconds)


def pilot_of(sources: Sources, name: str) -> Pilot | None:
    """Return the variances of the deltas of a study, or None if no instance can be compared."""
    found = study_noise(sources, DELTA)
    if found is None:
        return None
    *benchmarks, mean = found[-1]
    problem, interaction, sampling = np.array(benchmarks)[:, 1:].T
    return Pilot(mean.seed, problem, interaction, sampling, name)


def alike(pilot: Pilot) -> Pilot:
    """Return the pilot with the mean of its variances, for other benchmarks."""
    problem, interaction, sampling = (
        np.array([values.mean()]) for values in (pilot.problem, pilot.interaction, pilot.sampling)
    )
    return pilot._replace(problem=problem, interaction=interaction, sampling=sampling)


def design_of(config: dict[str, Any], sizes: tuple[int, ...]) -> Design:
    """Return the design of a study.

    Args:
        config: its configuration.
        sizes: the number of problems of each benchmark.
    """
    analysis, grid = config["analysis"], config["grid"]
    number = len(instances(grid))
    samples = config["evaluation"]["num_samples"]
    return Design(len(grid["seed"]), samples, sizes, number, analysis["confidence"], analysis["margin"] / 100)


def costs_of(sources: Sources) -> Costs:
    """Return the times of a study: the mean of a training, and the mean length of an answer over the sampling speed.

    The report of a study has no times of evaluations. The speed is that of sampling in the trainings of the baselines.
    """
    trained = sources.results[sources.results["product"] == "train"]
    speed = trained.loc[trained["skip_ratio"] == 0, "generated_tok_s"].median()
    return Costs(float(trained["train_runtime_s"].mean()), float(trained["mean_length"].mean() / speed))


def read_study(report: Path) -> tuple[Pilot, Design, Costs]:
    """Return the variances, the design and the costs of a finished study.

    Args:
        report: the folder of its report.

    Raises:
        UserError: the folder is not a report, or no instance can be compared with its baseline.
    """
    sources = read_sources(report)
    pilot = pilot_of(sources, str(report))
    if pilot is None:
        raise UserError(
            f"{report} has no instance that was trained with the same seed as its baseline; finish that study first"
        )
    sizes = sources.problem_scores.groupby("benchmark")["problem_id"].nunique().sort_index()
    return pilot, design_of(sources.config, tuple(map(int, sizes))), costs_of(sources)
