"""Bias, cosine and variance of gradient estimates against an on-policy reference, from independent batches.

A batch gives one gradient of each arm, (n, D) for n batches, and one of the reference on the same problems. A part of
the reference, the twin, may share the random numbers of the arm, which makes their difference less noisy. Each
expectation of a product is the mean over pairs of different batches: their noise is independent, so that, unlike the
squared norm of a mean, it does not contain the variance of the mean. Such an estimate of a squared norm can be
negative. Intervals are those of the jackknife over batches, with the quantile of Student's t. Where a bias is zero,
the jackknife overestimates the variance of its square, so that the interval is wider than it needs to be.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its interval."""

    center: float
    low: float
    high: float


class Products(NamedTuple):
    """Mean inner products of the gradients a and b of two estimators, over all batches and without each, (1 + n,)."""

    same: Floats  # E <a, b> of one batch
    different: Floats  # <E a, E b>, from pairs of different batches


def products(a: Floats, b: Floats) -> Products:
    """Return the mean inner products of gradients a and b, (n, D) each; without a batch, two others are needed."""
    inner = a @ b.T  # (n, n)
    n, diagonal = len(inner), np.diagonal(inner)
    with_batch = inner.sum(axis=0) + inner.sum(axis=1) - 2 * diagonal  # pairs of a batch and another one
    same = diagonal.sum() - np.append(0.0, diagonal)
    different = inner.sum() - diagonal.sum() - np.append(0.0, with_batch)
    counts = np.append(n, np.full(n, n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # of two batches without one, no pair is left
        return Products(same / counts, different / (counts * (counts - 1)))


def interval(values: Floats) -> Interval:
    """Return the jackknife interval of a statistic, from its value of all batches and those without each, (1 + n,)."""
    center, without = values[0], values[1:]
    n = len(without)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    margin = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
    return Interval(float(center), float(center - margin), float(center + margin))


class Moments(NamedTuple):
    """What all batches show of an arm, and all without each, (1 + n,), relative to the reference's norm."""

    squared_bias: Floats  # |E a - E r|^2 / |E r|^2
    cosine: Floats  # of E a and E r; NaN where the squared norm of E a is not estimated as positive
    variance: Floats  # the trace of the covariance of a batch's gradient, over |E r|^2


def differences(arm: Floats, twin: Floats, reference: Floats) -> Floats:
    """Return the differences of an arm from on-policy gradients with the weight of the twin that varies least, (n, D).

    The expected difference is the same for every weight, because the twin and the reference have the same expectation.
    """
    of_twin, of_arm = (gradients - reference for gradients in (twin, arm))
    centered = of_twin - of_twin.mean(axis=0)
    spread = (centered**2).sum()
    weight = (of_arm * centered).sum() / spread if spread else 0.0  # the twin is the whole reference
    return of_arm - weight * of_twin


def moments(arm: Floats, twin: Floats, reference: Floats) -> Moments:
    """Return the moments of an arm from its gradients, those of the twin and those of the reference, (n, D) each."""
    own, on_policy = products(arm, arm), products(reference, reference).different
    cross, difference = products(arm, reference).different, differences(arm, twin, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = cross / np.sqrt(own.different * on_policy)
    return Moments(
        products(difference, difference).different / on_policy, cosine, (own.same - own.different) / on_policy
    )


def root(values: Interval) -> Interval:
    """Return the interval of a square root, with 0 in the place of negative values."""
    return Interval(*(float(np.sqrt(max(value, 0.0))) for value in values))


def row_of_arm(arm: Floats, twin: Floats, reference: Floats, seconds: float, tokens: float) -> dict[str, float]:
    """Return the columns of an arm.

    Args:
        arm: its gradients, (n, D).
        twin: those of a part of the reference, (n, D).
        reference: those of the reference, (n, D).
        seconds: the time of a batch: its roll-out, and forward and backward.
        tokens: the sampled tokens of a batch.
    """
    found = moments(arm, twin, reference)
    deviation = root(interval(found.variance))
    columns = {
        "bias": root(interval(found.squared_bias)),
        "cosine": interval(found.cosine),
        "standard_deviation": deviation,
        # Of the mean over as many batches as fit into a second, or into 1000 tokens.
        "standard_deviation_of_second": root(interval(found.variance * seconds)),
        "standard_deviation_of_1000_tokens": root(interval(found.variance * tokens / 1000)),
    }
    row = {"squared_bias": float(found.squared_bias[0])}
    row["mean_squared_error"] = float(found.squared_bias[0] + found.variance[0])
    for name, (center, low, high) in columns.items():
        row |= {name: center, f"{name}_low": low, f"{name}_high": high}
    return row


def norm_of_reference(reference: Floats) -> Interval:
    """Return the interval of the squared norm of the reference's expected gradient."""
    return interval(products(reference, reference).different)


def rank_correlations(arms: Sequence[Floats], twin: Floats, reference: Floats) -> dict[str, float]:
    """Return Spearman's correlation of the order of the arms between even and odd batches; 1 is the same order.

    Args:
        arms: the gradients of at least two arms, (n, D) each, of at least four batches.
        twin: those of a part of the reference, (n, D).
        reference: those of the reference, (n, D).
    """
    halves = [[moments(arm[start::2], twin[start::2], reference[start::2]) for arm in arms] for start in (0, 1)]
    squared_biases, errors = (
        [[float(measure(found)) for found in half] for half in halves]
        for measure in (
            lambda found: found.squared_bias[0],
            lambda found: found.squared_bias[0] + found.variance[0],
        )
    )
    return {
        "bias": float(stats.spearmanr(*squared_biases).statistic),
        "mean_squared_error": float(stats.spearmanr(*errors).statistic),
    }


# The columns of the printed table: title -> column, with its interval if it has one.
SHOWN = {
    "bias": "bias",
    "cosine": "cosine",
    "sd of a batch": "standard_deviation",
    "sd of a second": "standard_deviation_of_second",
}


def text(table: pd.DataFrame, correlations: Mapping[str, float] | None) -> str:
    """Return the table of the arms in print, and how stable their order is.

    Args:
        table: a row per arm.
        correlations: those of `rank_correlations`, or None where there are too few arms for an order.
    """
    shown = table[["skip_ratio", "mitigation", "ratio_level"]].copy()
    for title, name in SHOWN.items():
        shown[title] = [
            "not resolved" if np.isnan(center) else f"{center:.3g} [{low:.3g}, {high:.3g}]"
            for center, low, high in zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        ]
    shown["seconds"] = [f"{seconds:.3g}" for seconds in table["seconds"]]
    lines = [shown.to_markdown(index=False, disable_numparse=True)]
    if correlations:
        lines += [
            "",
            "Rank correlation of the arms between even and odd batches: "
            f"{correlations['bias']:.2f} by bias, {correlations['mean_squared_error']:.2f} by mean squared error",
        ]
    return "\n".join(lines)
