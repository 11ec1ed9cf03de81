"""Interleaved rounds and their summary."""

import numpy as np

from nested_reft.bench.harness import estimate, quartiles, run_interleaved, speed_up, summarize
from nested_reft.report.statistics import median_interval


def test_variants_are_interleaved_in_alternating_order():
    calls: list[tuple[str, int]] = []

    def measure(name: str):
        def call(index: int) -> int:
            calls.append((name, index))
            return len(calls)

        return call

    orders, samples = run_interleaved({"a": measure("a"), "b": measure("b")}, 3)
    warm_up, kept = calls[:2], calls[2:]
    assert warm_up == [("a", 3), ("b", 3)]
    assert kept == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert orders == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert samples == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_summary_of_known_samples():
    samples = {"slow": [2.0, 4.0, 9.0], "fast": [1.0, 2.0, 3.0]}
    summary = summarize([["slow", "fast"]] * 3, samples, "slow")
    assert summary["seconds"] == samples
    assert summary["quartiles"]["slow"] == {"lower_quartile": 3.0, "median": 4.0, "upper_quartile": 6.5}
    # the median of the ratios 2, 2 and 3 within rounds
    assert summary["speed_up"] == {"fast": {"median": 2.0, "ci_low": 2.0, "ci_high": 3.0}}
    assert speed_up([10.0], [4.0]) == {"median": 2.5, "ci_low": 2.5, "ci_high": 2.5}
    assert quartiles([5.0]) == {"lower_quartile": 5.0, "median": 5.0, "upper_quartile": 5.0}
    assert estimate([1.0, 1.0])["median"] == 1.0


def test_interval_of_a_median_has_its_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = median_interval(rng.normal(1.3, 0.2, size=20), 0.95, resamples=1000)
        covered += low <= 1.3 <= high
    assert 0.90 <= covered / 300 <= 0.99
