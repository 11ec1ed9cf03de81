"""The split of the noise: hand-worked layouts, known components, and what cannot be estimated is said and not zero."""

import math

import numpy as np
import pytest

from nested_reft.report.captions import text
from nested_reft.report.noise import (
    ACCURACY,
    ALL_BENCHMARKS,
    DELTA,
    TOLERANCE,
    Scored,
    benchmark_noise,
    enough_samples,
    macro_noise,
    mean_noise,
    noise_facts,
    noise_table,
    runs_and_deltas,
    sampling_variance,
)
from nested_reft.report.sources import read_sources
from tests.conftest import ROOT

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "samples", "expected"),
    [
        # seeds differ by 1/2 and problems too, and nothing else does; an answer of a score of 1/2 has the variance 1/2
        ([[1.0, 0.5], [0.5, 0.0]], 2, (0.125, 0.125, -0.125, 0.25)),
        # both seeds solve two of three problems: the mean squares are 0, 1/12 and 1/2
        ([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], 1, (-1 / 6, -1 / 6, 0.5, NAN)),
        ([[1.0, 0.0, 1.0]], 1, (NAN, 1 / 3, NAN, NAN)),
        ([[1.0, 0.5, 0.0]], 2, (NAN, 0.25 - 1 / 12, NAN, 1 / 6)),
    ],
    ids=["seeds and samples", "seeds", "neither", "samples"],
)
def test_the_layout_by_hand(scores, samples, expected):
    array = np.array(scores)
    found = benchmark_noise(Scored(array, sampling_variance(array, samples)), samples)
    assert found == pytest.approx(expected, nan_ok=True)


def test_known_components_are_recovered():
    """Answers of models whose chances of a right answer are a sum of uniform effects of known variances."""
    rng, samples, seeds, sizes = np.random.default_rng(0), 4, 3, (60, 30)
    benchmarks = np.repeat(["a", "b"], sizes)

    def uniform(variance: float, *shape: int) -> np.ndarray:
        return math.sqrt(3 * variance) * rng.uniform(-1, 1, size=shape)

    found, accuracies = [], []
    for _ in range(2500):
        chance = 0.5 + uniform(0.004, seeds, 1) + uniform(0.015, 1, 90) + uniform(0.006, seeds, 90)
        scores = rng.binomial(samples, chance) / samples
        accuracies.append(scores[0, :60].mean())
        found.append(macro_noise(Scored(scores, sampling_variance(scores, samples)), benchmarks, samples))
    sampling = 0.25 - 0.004 - 0.015 - 0.006
    of_a, of_b, of_mean = np.mean(found, axis=0)
    assert of_a == pytest.approx([0.004, 0.015, 0.006, sampling], rel=0.1)
    assert of_b == pytest.approx([0.004, 0.015, 0.006, sampling], rel=0.15)
    halves = (1 / 60 + 1 / 30) / 4  # the share of a variance per problem that enters the mean of two benchmarks
    assert of_mean == pytest.approx([0.004, 0.015 * halves, 0.006 * halves, sampling * halves], rel=0.1)
    seed, problem, interaction, of_sample = of_a
    total = seed + (problem + interaction + of_sample / samples) / 60
    assert total == pytest.approx(np.var(accuracies), rel=0.12)  # another study, of one seed


def test_a_delta_has_the_sampling_noise_of_both_and_loses_what_both_share():
    rng, samples = np.random.default_rng(1), 8
    shared = rng.uniform(0.2, 0.8, size=200)
    scores = rng.binomial(samples, np.tile(shared, (2, 3, 1))) / samples
    (_, run), (_, _), (name, delta) = runs_and_deltas(scores, samples)
    assert name == DELTA and delta.within.mean() == pytest.approx(2 * run.within.mean(), rel=0.1)
    found = benchmark_noise(delta, samples)
    assert abs(found.problem) < 0.1 * benchmark_noise(run, samples).problem


def test_missing_runs_leave_the_others():
    scores = np.random.default_rng(0).integers(0, 2, size=(3, 2, 20)).astype(float)
    benchmarks = np.repeat(["a", "b"], 10)
    scores[1, 1], scores[2] = NAN, NAN
    by_name = {name: [one for found, one in runs_and_deltas(scores, 1) if found == name] for name in (ACCURACY, DELTA)}
    assert [len(one.scores) for one in by_name[ACCURACY]] == [2, 1] and [len(o.scores) for o in by_name[DELTA]] == [1]
    seeds, noises = mean_noise(by_name[ACCURACY], benchmarks, 1)
    # the estimates of the run with one seed mean something else
    expected = macro_noise(by_name[ACCURACY][0], benchmarks, 1)
    assert seeds == 2 and np.array(noises) == pytest.approx(np.array(expected), nan_ok=True)
    assert mean_noise([], benchmarks, 1) is None


def test_what_cannot_be_estimated_is_empty_and_named(made_up):
    one_seed = noise_table(read_sources(ROOT / "docs/reports/embedded"))
    assert one_seed[["seed", "seed_x_problem", "sampling"]].isna().all(axis=None)
    assert set(one_seed["not_estimated"]) == {"seed; seed x problem and sampling, parts of choice of problems"}
    two_seeds = noise_table(read_sources(made_up / "report"))
    assert two_seeds["sampling"].isna().all() and two_seeds["seed"].notna().all()
    assert set(two_seeds["not_estimated"]) == {"sampling, a part of seed x problem"}
    parts = two_seeds[["seed", "choice_of_problems", "seed_x_problem"]]
    assert (parts**2).sum(axis=1).tolist() == pytest.approx(list(two_seeds["total"] ** 2))
    assert list(two_seeds["benchmark"]) == 2 * ["algebra", "multi-step", "one-step", ALL_BENCHMARKS]
    assert list(two_seeds["problems"]) == 2 * [50, 40, 60, 150]


@pytest.mark.parametrize(("rest", "sampling"), [(1.0, 0.2), (0.0002, 0.004), (1.0, 0.0001)])
def test_more_than_enough_samples_change_little(rest, sampling):
    number = enough_samples(rest, sampling)

    def lost(samples: int) -> float:
        return 1 - math.sqrt(rest / (rest + sampling / samples))

    assert lost(number) <= TOLERANCE and (number == 1 or lost(number - 1) > TOLERANCE)


def test_where_nothing_else_is_noise_no_number_of_samples_is_enough():
    assert enough_samples(0.0, 0.1) == 0 and enough_samples(0.0, 0.0) == 1


def test_findings_recommend_a_number_of_samples(made_up):
    facts = noise_facts(noise_table(read_sources(made_up / "report")), num_seeds=2)
    assert "Even if all of seed x problem were sampling, more samples" in text("_noise_split", facts)
    assert "Where the noise comes from" in (made_up / "report/findings.rst").read_text()
    row = facts["noise_of_delta"] | {"samples": 4, "sampling": 0.01}
    said = text("_noise_split", facts | {"noise_of_delta": row, "enough_samples": 6})
    assert "sampling of answers 1.0." in said and "Recommended: `evaluation.num_samples: 6`." in said
    row |= {"seeds": 1, "samples": 1}
    said = text("_noise_split", facts | {"noise_of_delta": row, "enough_samples": None})
    assert "cannot be estimated from one seed" in said and "Recommended" not in said
