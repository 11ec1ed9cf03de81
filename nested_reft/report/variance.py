"""What the choice of problems adds to the variance of a mean over them, and how well that variance is known.

A variance is a sum of estimates, each with its degrees of freedom: one for each benchmark and each mean square.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nested_reft.report.clusters import Codes, Floats, clusters_of, variance_of_mean


class Estimates(NamedTuple):
    """Independent estimates that add up to a variance; a negative one takes out what another one contains too much."""

    variances: Floats  # (..., m)
    freedoms: Floats  # (m,), the degrees of freedom of each


def add(*estimates: Estimates) -> Estimates:
    """Return all estimates as one."""
    variances, freedoms = zip(*estimates, strict=True)
    return Estimates(np.concatenate(variances), np.concatenate(freedoms))


def satterthwaite(variance: npt.ArrayLike, estimates: Estimates) -> Floats:
    """Return the degrees of freedom (...) of variances (...), at least 1 (Satterthwaite, 1946).

    Args:
        variance: the variances, (...).
        estimates: what each of them consists of, (..., m).
    """
    uncertainty = (estimates.variances**2 / estimates.freedoms).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.maximum(1.0, np.square(variance) / uncertainty)
    freedoms: Floats = np.where(uncertainty > 0, freedom, estimates.freedoms.sum(axis=-1))
    return freedoms


def variance_between_problems(
    values: Floats, benchmarks: npt.NDArray[np.str_], clusters: Codes | None = None
) -> Estimates:
    """Return the variance of the macro average of values (n,) over the choice of problems, by benchmark.

    Args:
        values: one number per problem, (n,).
        benchmarks: the benchmark of each problem, (n,).
        clusters: the cluster of each problem, (n,), from `cluster_codes`; None if each problem is one of its own.
    """
    clusters = np.arange(len(benchmarks)) if clusters is None else clusters
    names = np.unique(benchmarks)
    own = [(values[benchmarks == name], clusters[benchmarks == name]) for name in names]
    variances = np.array([variance_of_mean(numbers, codes) for numbers, codes in own])
    freedoms = np.array([max(1.0, clusters_of(codes)[1] - 1) for _, codes in own])
    return Estimates(variances / len(names) ** 2, freedoms)


def two_way_residuals(differences: Floats) -> Floats:
    """Return the residuals (seeds, n) of the layout difference = seed + problem + residual, on one benchmark."""
    by_problem, by_seed = differences.mean(axis=0, keepdims=True), differences.mean(axis=1, keepdims=True)
    residuals: Floats = differences - by_problem - by_seed + differences.mean()
    return residuals


def residual_variance(differences: Floats) -> float:
    """Return the mean square of the two-way residuals.

    Args:
        differences: the paired differences on one benchmark, (seeds, n), at least two of each.
    """
    seeds, n = differences.shape
    return float((two_way_residuals(differences) ** 2).sum() / ((seeds - 1) * (n - 1)))


def variance_of_residuals(
    differences: Floats, benchmarks: npt.NDArray[np.str_], clusters: Codes | None = None
) -> Estimates:
    """Return what the residuals add to the variance of the macro average over seeds and problems, by benchmark.

    With one seed the residuals cannot be separated from the problems, and nothing is returned.

    Args:
        differences: the differences, (seeds, n).
        benchmarks: the benchmark of each problem, (n,).
        clusters: the cluster of each problem, (n,), from `cluster_codes`; None if each problem is one of its own.
    """
    seeds = len(differences)
    if seeds == 1:
        return Estimates(np.zeros(0), np.zeros(0))
    residuals = np.zeros_like(differences)
    for name in np.unique(benchmarks):
        residuals[:, benchmarks == name] = two_way_residuals(differences[:, benchmarks == name])
    of_seeds = [variance_between_problems(row, benchmarks, clusters) for row in residuals]
    variances = np.sum([found.variances for found in of_seeds], axis=0) / (seeds * (seeds - 1))
    return Estimates(variances, (seeds - 1) * of_seeds[0].freedoms)


def problem_variance(
    differences: Floats, benchmarks: npt.NDArray[np.str_], clusters: Codes | None = None
) -> Estimates:
    """Return what problems add to the variance of a delta's macro average, and more seeds would not remove.

    All seeds answer the same problems. The variance between the problems' means over seeds contains the residuals,
    which `seed_variance` contains already, so that they are subtracted.

    Args:
        differences: the paired differences, (seeds, n).
        benchmarks: the benchmark of each problem, (n,).
        clusters: the cluster of each problem, (n,), from `cluster_codes`; None if each problem is one of its own.
    """
    between = variance_between_problems(differences.mean(axis=0), benchmarks, clusters)
    residuals = variance_of_residuals(differences, benchmarks, clusters)
    return add(between, residuals._replace(variances=-residuals.variances))
