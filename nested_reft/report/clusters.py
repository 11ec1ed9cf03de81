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


def variance_of_mean(values: Floats, codes: Codes) -> float:
    """Return the variance of the mean of values (n,) over the n problems of one benchmark."""
    own, number = clusters_of(codes)
    if number == 1:
        return 0.0
    sums = np.bincount(own, weights=values - values.mean())  # (clusters,)
    return float(number / (number - 1) * (sums @ sums) / len(codes) ** 2)
