"""Problems that come in clusters: several about one text, from one exam, or of one calculation.

A model that fails one problem of a cluster fails others of it, too, so that such problems show less than as many
others. The variance of a mean over them is computed from the sums of the clusters (cluster-robust, Liang and Zeger,
1986), with the factor G / (G - 1) for G clusters. Without clusters it is the ordinary variance of a mean.
"""

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


def clustered_covariance(values: Floats, benchmarks: npt.NDArray[np.str_], clusters: Codes) -> Floats:
    """Return the covariance (m, m) of m macro averages of values (m, n) over the choice of clusters."""
    names = np.unique(benchmarks)
    parts = [covariance_of_means(values[:, benchmarks == name], clusters[benchmarks == name]) for name in names]
    total: Floats = np.sum(parts, axis=0) / len(names) ** 2
    return total


def clustered_variance(differences: Floats, benchmarks: npt.NDArray[np.str_], clusters: Codes) -> tuple[float, float]:
    """Return what clusters add to the variance of a delta's macro average, and its degrees of freedom.

    It takes the place of `problem_variance`: with several seeds, the part that `seed_variance` contains is left out.
    The degrees of freedom are Satterthwaite's, of a sum over benchmarks with one less than their clusters each.

    Args:
        differences: the paired differences, (seeds, n).
        benchmarks: the benchmark of each problem, (n,).
        clusters: the cluster of each problem, (n,), from `cluster_codes`.
    """
    seeds, names = len(differences), np.unique(benchmarks)
    observed, left_out, freedoms = [], [], []
    for name in names:
        own, codes = differences[:, benchmarks == name], clusters[benchmarks == name]
        by_problem, by_seed = own.mean(axis=0, keepdims=True), own.mean(axis=1, keepdims=True)
        observed.append(covariance_of_means(by_problem, codes)[0, 0])
        residual = own - by_problem - by_seed + own.mean()
        left_out.append(np.trace(covariance_of_means(residual, codes)) / (seeds * (seeds - 1)) if seeds > 1 else 0.0)
        freedoms.append(max(1, clusters_of(codes)[1] - 1))
    total, squares = np.array(observed), (np.array(observed) ** 2 / np.array(freedoms)).sum()
    freedom = total.sum() ** 2 / squares if squares > 0 else float(sum(freedoms))
    return max(0.0, float(total.sum() - np.sum(left_out))) / len(names) ** 2, float(freedom)
