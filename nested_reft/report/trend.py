"""One test of a whole study: the slope of the accuracy on the share of layers skipped.

A delta compares one instance with its baseline, and a study has many of them, each with little data. The slope uses
all runs at once. It is linear in the accuracies, so that each problem has a slope of its own: differences between
problems, which all runs share, cancel, and the variance of the slope follows from the slopes of the problems. Nothing
has to be assumed about how the instances of a cell, or the cells of a study, depend on each other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from nested_reft.report.clusters import Codes
from nested_reft.report.statistics import RESAMPLES, ROUNDING, Floats, macro_average, seed_variance
from nested_reft.report.variance import (
    Estimates,
    add,
    satterthwaite,
    variance_between_problems,
    variance_of_residuals,
)

Names = npt.NDArray[np.str_]


class Trend(NamedTuple):
    """The slope of the macro-average accuracy on the share of layers skipped, pooled over the cells of a study."""

    cells: int = 0
    slope: float = float("nan")  # accuracy per share: a slope of -0.1 costs 1 point at a share of 10 %
    ci_low: float = float("nan")
    ci_high: float = float("nan")
    standard_error: float = float("nan")
    freedom: float = float("nan")  # the degrees of freedom of `standard_error`
    p: float = float("nan")
    covers_seeds: bool = False  # the interval and p include the variation between seeds


class CellSlope(NamedTuple):
    """The slope of one cell, and what seeds add to its variance."""

    slope: float  # the macro average of `slopes`, averaged over seeds
    slopes: Floats  # (seeds, n), the slope of each problem
    seed_part: float  # the variance that seeds add
    seed_freedom: int  # its degrees of freedom; 0 with a single seed


def slope_weights(shares: Floats) -> Floats:
    """Return the weights (m,) whose sum with accuracies is the least-squares slope on their shares (m,)."""
    centered = shares - shares.mean()
    weights: Floats = centered / (centered**2).sum()
    return weights


def cell_slope(scores: Floats, shares: Floats, benchmarks: Names) -> CellSlope | None:
    """Return the slope of one cell, the mean of the least-squares slopes of its seeds, or None without two shares.

    Args:
        scores: (instances, seeds, n), the baseline among the instances; NaN marks a missing run.
        shares: the share of the layers that each instance skips, (instances,).
        benchmarks: the benchmark of each problem, (n,).
    """
    averages = macro_average(scores, benchmarks)  # (instances, seeds)
    spread = seed_variance(averages)
    of_seeds, squares = [], []
    for seed in range(averages.shape[1]):
        present = ~np.isnan(averages[:, seed])
        if len(np.unique(shares[present])) > 1:
            weights = slope_weights(shares[present])
            of_seeds.append(weights @ scores[present, seed])
            squares.append((weights**2).sum())
    if not of_seeds:
        return None
    slopes = np.stack(of_seeds)  # (seeds, n)
    seed_part = spread.variance * np.sum(squares) / len(squares) ** 2 if spread.degrees_of_freedom else 0.0
    return CellSlope(
        float(macro_average(slopes.mean(axis=0), benchmarks)),
        slopes,
        float(seed_part),
        spread.degrees_of_freedom if len(squares) > 1 else 0,
    )


def pooled_trend(
    cells: Sequence[CellSlope], benchmarks: Names, confidence: float, clusters: Codes | None = None
) -> Trend:
    """Return the mean slope of several cells.

    The cells share their problems, so that their slopes are correlated. The mean slope of each problem contains that
    correlation, whatever it is, and its variance between problems is that of the pooled slope. The mean is the
    generalized least-squares estimate if all cells have the same variance and the same covariance with each other.
    Weights by estimated variances would favor cells whose variance is underestimated: with six cells and 180 problems,
    such a test had a size of 6 % instead of 5 %.

    Args:
        cells: the slopes of the cells, on the same problems.
        benchmarks: the benchmark of each problem, (n,).
        confidence: the level of the interval.
        clusters: the cluster of each problem, (n,), or None if each problem is one of its own.
    """
    if not cells:
        return Trend()
    slope = float(np.mean([cell.slope for cell in cells]))
    share = 1 / len(cells) ** 2  # of the variance of a cell in that of the mean
    of_seeds = Estimates(
        share * np.array([cell.seed_part for cell in cells]),
        np.array([max(1.0, cell.seed_freedom) for cell in cells]),
    )
    between = variance_between_problems(
        np.mean([cell.slopes.mean(axis=0) for cell in cells], axis=0), benchmarks, clusters
    )
    residuals = add(*(variance_of_residuals(cell.slopes, benchmarks, clusters) for cell in cells))
    of_problems = add(between, residuals._replace(variances=-share * residuals.variances))
    error = float(np.sqrt(of_seeds.variances.sum() + max(0.0, of_problems.variances.sum())))
    if error <= ROUNDING:
        return Trend(len(cells), slope, slope, slope, 0.0, float("inf"), float(abs(slope) <= ROUNDING))
    freedom = float(satterthwaite(error**2, add(of_seeds, of_problems)))
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    p = float(2 * special.stdtr(freedom, -abs(slope) / error))
    covers_seeds = all(cell.seed_freedom > 0 for cell in cells)
    return Trend(len(cells), slope, slope - half, slope + half, error, freedom, p, covers_seeds)


def ordering_test(accuracies: Sequence[Floats], shares: Floats, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p of the order of the accuracies by the share of layers skipped, a permutation test.

    If skipping layers changed nothing, the instances of a cell, which differ in nothing else, could be exchanged. The
    statistic is the sum over cells and seeds of the products of the ranks of shares and accuracies, as in Page's test
    (1963), which it extends to equal shares. It needs no normality, no variance, and nothing about problems.

    Args:
        accuracies: for each cell, the macro averages (instances, seeds); NaN marks a missing run.
        shares: the share of the layers that each instance skips, (instances,).
        resamples: the number of permutations.
        seed: the seed of the permutations.
    """
    rng = np.random.default_rng(seed)
    x = centered_ranks(shares)
    observed, permuted = 0.0, np.zeros(resamples)
    for cell in accuracies:
        ranks = np.zeros(len(shares))  # summed over seeds, which answer the same problems and are permuted together
        for column in cell.T:
            present = ~np.isnan(column)
            ranks[present] += centered_ranks(column[present])
        observed += float(ranks @ x)
        permuted = permuted + rng.permuted(np.tile(ranks, (resamples, 1)), axis=1) @ x
    return float((1 + (np.abs(permuted) >= abs(observed) - 1e-9).sum()) / (1 + resamples))


def centered_ranks(values: Floats) -> Floats:
    """Return the ranks of values (m,), equal values sharing their mean rank, minus the mean of all ranks."""
    from scipy import stats  # takes half a second to import

    # Equal accuracies may differ by the rounding of their means.
    centered: Floats = stats.rankdata(values.round(12)) - (len(values) + 1) / 2
    return centered
