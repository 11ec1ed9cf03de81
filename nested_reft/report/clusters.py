"""Problems that come in clusters: several about one text, from one exam, or of one calculation.

A model that fails one problem of a cluster fails others of it, too, so that such problems show less than as many
others. The variance of a mean over them is computed from the sums of the clusters (cluster-robust, Liang and Zeger,
1986), with the factor G / (G - 1) for G clusters. Without clusters it is the ordinary variance of a mean.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def cluster_codes(problems: pd.DataFrame) -> Codes | None:
    """Return a number per problem that problems of the same benchmark and cluster share, or None if none share one.

    Args:
        problems: a row per problem, with `benchmark`, `problem_id` and perhaps `cluster`. A problem without a cluster
            is one of its own.
    """
    if "cluster" not in problems or problems["cluster"].isna().all():
        return None
    alone = problems["cluster"].isna()
    names = problems["cluster"].astype(object).where(~alone, problems["problem_id"]).astype(str)
    keys = pd.DataFrame({"benchmark": problems["benchmark"].astype(object), "alone": alone, "name": names})
    codes = np.array(keys.groupby(["benchmark", "alone", "name"], sort=False).ngroup(), dtype=np.int64)
    return codes if len(np.unique(codes)) < len(codes) else None


def clusters_of(codes: Codes) -> tuple[Codes, int]:
    """Return the clusters of one benchmark, numbered from 0, and their number.

    A single cluster does not show how clusters differ: its problems then count as one cluster each.
    """
    names, own = np.unique(codes, return_inverse=True)
    if len(names) == 1:
        return np.arange(len(codes)), len(codes)
    return own, len(names)


def covariance_of_means(values: Floats, codes: Codes) -> Floats:
    """Return the covariance (m, m) of the m means of values (m, n) over the n problems of one benchmark."""
    own, number = clusters_of(codes)
    if number == 1:
        return np.zeros((len(values), len(values)))
    centered = values - values.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(own, weights=row) for row in centered])  # (m, clusters)
    covariance: Floats = number / (number - 1) * (sums @ sums.T) / len(codes) ** 2
    return covariance


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
    own = [(values[None, benchmarks == name], clusters[benchmarks == name]) for name in names]
    variances = np.array([covariance_of_means(numbers, codes)[0, 0] for numbers, codes in own])
    freedoms = np.array([max(1.0, clusters_of(codes)[1] - 1) for _, codes in own])
    return Estimates(variances / len(names) ** 2, freedoms)


def variance_of_residuals(
    differences: Floats, benchmarks: npt.NDArray[np.str_], clusters: Codes | None = None
) -> Estimates:
    """Return what the residuals add to the variance of the macro average over seeds and problems, by benchmark.

    They are those of the two-way layout difference = seed + problem + residual. With one seed they cannot be separated
    from the problems, and nothing is returned.

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
        own = differences[:, benchmarks == name]
        residuals[:, benchmarks == name] = own - own.mean(axis=0) - own.mean(axis=1, keepdims=True) + own.mean()
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
