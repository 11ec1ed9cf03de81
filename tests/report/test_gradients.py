"""Bias, cosine and variance of gradients, against simulations in which they are known."""

import numpy as np
import pandas as pd
import pytest

from nested_reft.report import gradients
from nested_reft.report.figures.gradients import gradients as figure

DIMENSION, BATCHES, REPEATS = 30, 24, 300
MEAN = np.full(DIMENSION, 1 / DIMENSION**0.5)  # of norm 1


def simulated(rng, bias):
    """Return gradients of an arm, the twin and the reference that share the noise of the problems, (n, D) each.

    The arm and the twin also share the noise of their random numbers. The twin is a quarter of the reference.
    """
    problems, numbers, own, other = rng.normal(size=(4, BATCHES, DIMENSION))
    shift = np.zeros(DIMENSION)
    shift[0] = bias
    twin = MEAN + problems + numbers
    return MEAN + shift + problems + numbers + own, twin, twin / 4 + 0.75 * (MEAN + problems + other)


def test_products_without_a_batch_are_those_of_the_other_batches():
    a, b, _ = simulated(np.random.default_rng(0), 1.0)
    found = gradients.products(a, b)
    for batch in range(BATCHES):
        alone = gradients.products(np.delete(a, batch, axis=0), np.delete(b, batch, axis=0))
        assert found.same[1 + batch] == pytest.approx(alone.same[0])
        assert found.different[1 + batch] == pytest.approx(alone.different[0])
    pairs = [a[i] @ b[j] for i in range(BATCHES) for j in range(BATCHES) if i != j]
    assert found.different[0] == pytest.approx(np.mean(pairs)) and found.same[0] == pytest.approx(
        (a * b).sum(1).mean()
    )


@pytest.mark.parametrize("bias", [0.0, 0.5, 3.0])
def test_estimates_are_unbiased_and_intervals_hold_the_truth(bias):
    rng = np.random.default_rng(1)
    truth = MEAN + np.eye(DIMENSION)[0] * bias
    expected = {
        "squared_bias": bias**2,
        "cosine": (truth + 30 * MEAN) @ MEAN / np.linalg.norm(truth + 30 * MEAN),
        "variance": 3.0 * DIMENSION,
    }
    found = {name: [] for name in expected}
    for _ in range(REPEATS):
        # With a norm that is known well, a ratio to it has no bias of its own.
        of_all = gradients.moments(*(drawn + 30 * MEAN for drawn in simulated(rng, bias)))
        for name, scale in (("squared_bias", 31.0**2), ("variance", 31.0**2)):
            found[name].append(gradients.interval(getattr(of_all, name) * scale))
        found["cosine"].append(gradients.interval(of_all.cosine))
    for name, intervals in found.items():
        centers = np.array([one.center for one in intervals])
        tolerance = 4 * centers.std() / REPEATS**0.5 + 1e-4
        assert centers.mean() == pytest.approx(expected[name], abs=tolerance), name
        coverage = np.mean([one.low <= expected[name] <= one.high for one in intervals])
        assert coverage >= 0.92, (name, coverage)
        assert coverage <= 0.985 or name != "variance", (name, coverage)


def test_differences_have_the_weight_of_the_twin_that_varies_least():
    arm, twin, reference = simulated(np.random.default_rng(3), 0.5)

    def variance(difference):
        return (
            gradients.products(difference, difference).same[0]
            - gradients.products(difference, difference).different[0]
        )

    found = variance(gradients.differences(arm, twin, reference))
    of_weights = [variance(arm - (1 - share) * reference - share * twin) for share in np.linspace(-1, 2, 301)]
    assert found == pytest.approx(min(of_weights), rel=1e-3) and found < 0.9 * variance(arm - reference)
    assert np.array_equal(gradients.differences(arm, reference, reference), arm - reference)


def test_the_order_of_arms_is_compared_between_halves_and_drawn():
    rng = np.random.default_rng(2)
    common = rng.normal(size=(BATCHES, DIMENSION)) / 10
    reference = 5 * MEAN + common
    arms = [5 * MEAN + common + shift * np.eye(DIMENSION)[0] for shift in (0.0, 1.0, 2.0, 3.0)]
    assert gradients.rank_correlations(arms, reference, reference) == {"bias": 1.0, "mean_squared_error": 1.0}
    # An arm whose bias is of one half only.
    odd = arms[0].copy()
    odd[1::2, 0] += 9.0
    assert gradients.rank_correlations([odd, *arms[1:]], reference, reference)["bias"] < 0
    names = [(0.0, "none", ""), (0.1, "base", ""), (0.1, "is", "token"), (0.1, "is", "sequence")]
    table = pd.DataFrame(
        [
            dict(zip(("skip_ratio", "mitigation", "ratio_level"), name, strict=True))
            | gradients.row_of_arm(arm, reference, reference, seconds=4.0, tokens=250)
            | {"seconds": 4.0}
            for name, arm in zip(names, arms, strict=True)
        ]
    )
    assert table["bias"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6], rel=0.05, abs=1e-4)
    ratio = table["standard_deviation_of_second"] / table["standard_deviation"]
    assert ratio.tolist() == pytest.approx([2.0] * 4)  # four seconds a batch
    ratio = table["standard_deviation_of_1000_tokens"] / table["standard_deviation"]
    assert ratio.tolist() == pytest.approx([0.5] * 4)  # four batches
    printed = gradients.text(table, {"bias": 1.0, "mean_squared_error": 0.5})
    assert "| 0.1 | is | sequence |" in " ".join(printed.split()) and "1.00 by bias, 0.50 by" in printed
    labels = [text.get_text() for text in figure(table).legends[0].get_texts()]
    assert labels == ["whole model", "base", "is, token", "is, sequence", "x = 10%"]
