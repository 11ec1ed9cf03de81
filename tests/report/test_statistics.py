"""Intervals hold the truth as often as they say, and tests agree with those of scipy, statsmodels and enumeration."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from nested_reft.report.statistics import (
    Delta,
    accuracy_deltas,
    accuracy_interval,
    best_by_chance,
    bootstrap_macro_averages,
    effective_n,
    equivalence_p,
    exact_interval,
    holm,
    macro_average,
    mcnemar_test,
    metric_deltas,
    pass_at_k,
    problem_interval,
    seed_variance,
    sign_flip_test,
    smallest_resolvable,
    wilson_interval,
)
from nested_reft.report.variance import problem_variance

LEVEL, REPEATS = 0.95, 2000


def holds(share: float) -> bool:
    """Whether a coverage is what a 95 % interval promises."""
    return 0.93 <= share <= 0.97


# ---- a study whose truth is known ------------------------------------------------------------------


class Simulation:
    """Scores of a cell of the grid: difficulty of problems, of problems to instances, seeds and sampling.

    An answer is correct where mean of the benchmark + problem + delta + problem x instance + seed + sample
    is positive, all of them normal, so that accuracies are known in closed form.
    """

    def __init__(self, sizes, instances=9, seeds=1, delta=0.0, seed_sd=0.0, interaction_sd=0.4, sample_sd=0.7):
        self.benchmarks = np.repeat([f"b{index}" for index in range(len(sizes))], sizes)
        self.means = np.linspace(-1.0, 1.0, len(sizes))
        self.shape = (1 + instances, seeds, sum(sizes))
        self.sizes, self.delta, self.seed_sd = sizes, delta, seed_sd
        self.interaction_sd, self.sample_sd = interaction_sd, sample_sd

    def truth(self) -> tuple[float, float]:
        """Return the accuracies of the baseline and of an instance, over all problems and seeds."""
        # one seed effect is shared by a cell, as the warm-up is, one is each run's own
        spread = np.sqrt(1 + self.interaction_sd**2 + self.sample_sd**2 + 2 * self.seed_sd**2)
        return tuple(stats.norm.cdf((self.means + shift) / spread).mean() for shift in (0.0, self.delta))

    def draw(self, rng) -> np.ndarray:
        """Return scores (1 + instances, seeds, n)."""
        instances, seeds, n = self.shape
        latent = np.repeat(self.means, self.sizes) + rng.normal(size=n)
        latent = latent + self.interaction_sd * rng.normal(size=(instances, 1, n))
        latent = latent + self.seed_sd * (rng.normal(size=(1, seeds, 1)) + rng.normal(size=(instances, seeds, 1)))
        latent[1:] += self.delta
        return (latent + self.sample_sd * rng.normal(size=self.shape) > 0).astype(float)


def coverage_of_deltas(simulation: Simulation, repeats: int = REPEATS) -> tuple[float, float]:
    """Return how often the intervals of the first instance, absolute and relative, hold the truth."""
    rng = np.random.default_rng(1)
    baseline, instance = simulation.truth()
    absolute, relative = instance - baseline, instance / baseline - 1
    held = np.zeros(2)
    for _ in range(repeats):
        delta = next(accuracy_deltas(simulation.draw(rng), simulation.benchmarks, LEVEL, resamples=600))
        held += [
            delta.ci_low <= absolute <= delta.ci_high,
            delta.relative_ci_low <= relative <= delta.relative_ci_high,
        ]
    return tuple(held / repeats)


@pytest.mark.parametrize("n", [30, 83, 500])
def test_coverage_of_wilson_intervals(n):
    """Over accuracies from .1 to .9: for a single one the coverage of any interval of a count oscillates."""
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.1, 0.9, REPEATS)
    intervals = [wilson_interval(rng.binomial(n, truth) / n, n, LEVEL) for truth in truths]
    assert holds(np.mean([low <= truth <= high for truth, (low, high) in zip(truths, intervals, strict=True)]))


def test_coverage_of_wilson_intervals_with_several_samples_per_problem():
    rng = np.random.default_rng(0)
    held, naive = 0, 0
    for truth in rng.uniform(0.2, 0.8, REPEATS):
        scores = rng.binomial(8, rng.beta(truth, 1 - truth, size=100)) / 8
        for n, counted in ((effective_n(scores), True), (800, False)):
            low, high = wilson_interval(scores.mean(), n, LEVEL)
            held += counted and low <= truth <= high
            naive += not counted and low <= truth <= high
    assert holds(held / REPEATS)
    assert naive / REPEATS < 0.7  # 800 samples of 100 problems are not 800 problems


def coverage_of_a_small_benchmark(problems, samples, alike, accuracy, repeats) -> float:
    """Return how often the interval of one accuracy holds the truth.

    Args:
        alike: large if all problems are equally hard, small if the samples of a problem are all right or all wrong.
    """
    rng = np.random.default_rng(0)
    chances = rng.beta(accuracy * alike, (1 - accuracy) * alike, size=(repeats, problems))
    intervals = [accuracy_interval(scores, samples, LEVEL) for scores in rng.binomial(samples, chances) / samples]
    return np.mean([low <= accuracy <= high for low, high in intervals])


@pytest.mark.parametrize("alike", [0.5, 50.0])
@pytest.mark.parametrize("accuracy", [0.03, 0.1, 0.5])
def test_intervals_of_thirty_problems_with_eight_samples_hold_each_truth(alike, accuracy):
    assert coverage_of_a_small_benchmark(30, 8, alike, accuracy, repeats=400) >= 0.93  # .95 and two errors


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("problems", [10, 30, 83])
@pytest.mark.parametrize("samples", [4, 32])
@pytest.mark.parametrize("alike", [0.1, 0.5, 2.0, 50.0])
def test_intervals_of_small_benchmarks_hold_each_truth(problems, samples, alike):
    for accuracy in (0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.97):
        assert coverage_of_a_small_benchmark(problems, samples, alike, accuracy, REPEATS) >= 0.94  # two errors: .01


@pytest.mark.parametrize("n", [30, 83])
def test_exact_intervals_hold_each_truth_and_wilsons_do_not(n):
    """By enumeration of all numbers of right answers."""
    right = np.arange(n + 1)
    exact, wilson = (
        np.array([interval(number / n, n, LEVEL) for number in right])
        for interval in (exact_interval, wilson_interval)
    )
    for intervals, lowest, highest in ((exact, 0.95, 1.0), (wilson, 0.8, 0.9)):
        coverages = [
            stats.binom.pmf(right, n, truth)[(intervals[:, 0] <= truth) & (truth <= intervals[:, 1])].sum()
            for truth in np.linspace(0.001, 0.999, 999)
        ]
        assert lowest <= min(coverages) <= highest


@pytest.mark.parametrize("sizes", [(60, 60, 60), (30, 83, 200)])
def test_coverage_of_the_macro_average(sizes):
    simulation, rng = Simulation(sizes, instances=0), np.random.default_rng(2)
    truth, _ = simulation.truth()
    intervals = [
        problem_interval(simulation.draw(rng)[0, 0], simulation.benchmarks, LEVEL, resamples=600)
        for _ in range(REPEATS)
    ]
    assert holds(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_coverage_of_a_delta_of_one_seed(delta):
    absolute, relative = coverage_of_deltas(Simulation((60, 60, 60), instances=1, delta=delta))
    assert holds(absolute) and holds(relative), (absolute, relative)


@pytest.mark.parametrize(("seed_sd", "delta"), [(0.0, 0.0), (0.1, 0.2), (0.5, 0.0)])
def test_coverage_of_a_delta_of_three_seeds(seed_sd, delta):
    absolute, relative = coverage_of_deltas(Simulation((30, 83, 100), seeds=3, seed_sd=seed_sd, delta=delta))
    assert holds(absolute) and holds(relative), (absolute, relative)


@pytest.mark.slow
@pytest.mark.nightly  # the tests of one and of three seeds above have smaller benchmarks
@pytest.mark.parametrize("sizes", [(30, 83, 500, 272, 675), (200, 200, 200)])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 0.3, 1.0])
def test_coverage_of_deltas_at_the_sizes_of_studies(sizes, seeds, seed_sd):
    if seeds == 1 and seed_sd > 0:
        pytest.skip("one seed has no variation between seeds")
    absolute, relative = coverage_of_deltas(Simulation(sizes, seeds=seeds, seed_sd=seed_sd, delta=0.1))
    assert holds(absolute) and holds(relative), (absolute, relative)


def test_a_bootstrap_over_three_seeds_would_hold_the_truth_too_seldom():
    """Why the seeds are not resampled: the same simulation, seeds and then problems drawn with replacement."""
    simulation, rng = Simulation((60, 60, 60), instances=1, seeds=3, seed_sd=0.5), np.random.default_rng(3)
    held = 0
    for _ in range(300):
        scores = simulation.draw(rng)
        seeds = rng.integers(3, size=(300, 3))
        columns = rng.integers(60, size=(300, 180)) + np.repeat([0, 60, 120], 60)
        differences = scores[1] - scores[0]
        drawn = [differences[np.ix_(s, c)].mean() for s, c in zip(seeds, columns, strict=True)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= 0 <= high
    assert held / 300 < 0.9


def test_coverage_of_deltas_of_token_speed():
    rng = np.random.default_rng(4)
    held = np.zeros(2)
    for _ in range(REPEATS):
        values = 100 + 3 * rng.normal(size=(1, 3)) + 2 * rng.normal(size=(10, 3))
        values[1:] += 5
        delta = metric_deltas(values, LEVEL)[0]
        held += [delta.ci_low <= 5 <= delta.ci_high, delta.relative_ci_low <= 0.05 <= delta.relative_ci_high]
    assert all(holds(share) for share in held / REPEATS)


def test_pooling_seed_variances_costs_coverage_where_they_differ():
    """The limit that docs/concepts/statistics.md reports: seed effects of half, once and twice the baseline's."""
    rng, held = np.random.default_rng(6), np.zeros(9)
    spread = np.array([1.0, *np.repeat([0.5, 1.0, 2.0], 3)])[:, None]
    for _ in range(REPEATS):
        deltas = metric_deltas(100 + spread * rng.normal(size=(10, 3)), LEVEL)
        held += [delta.ci_low <= 0 <= delta.ci_high for delta in deltas]
    steady, middle, noisy = held.reshape(3, 3).mean(axis=1) / REPEATS
    print(steady, middle, noisy)
    assert 0.98 < steady < 1.0 and 0.95 < middle < 0.99 and 0.86 < noisy < 0.93


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.0), (3, 0.3)])
@pytest.mark.parametrize("repeats", [600, pytest.param(REPEATS, marks=[pytest.mark.slow, pytest.mark.nightly])])
def test_a_null_study_resolves_nothing(seeds, seed_sd, repeats):
    """Ten identical models that differ by sampling, and by seeds: in 95 % of studies no delta stands out."""
    simulation, rng = (
        Simulation((60, 60, 60), seeds=seeds, seed_sd=seed_sd, interaction_sd=0.0),
        np.random.default_rng(5),
    )
    alarms = 0
    for _ in range(repeats):
        deltas = list(accuracy_deltas(simulation.draw(rng), simulation.benchmarks, LEVEL, resamples=500))
        alarms += holm([delta.p for delta in deltas]).min() < 1 - LEVEL
    assert alarms / repeats <= 0.05
    # and it can: one instance that is far off is found
    simulation.delta = -1.5
    deltas = list(accuracy_deltas(simulation.draw(rng), simulation.benchmarks, LEVEL, resamples=500))
    assert holm([delta.p for delta in deltas]).max() < 0.05


# ---- against libraries, enumeration and hand-worked cases -------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 6), (3, 30), (77, 83), (30, 30)])
def test_wilson_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(successes / n, n, 0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("successes", "n"), [(0, 6), (3, 30), (77, 83), (30, 30)])
def test_the_interval_of_a_small_benchmark_is_scipys_exact_one(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.9, method="exact")
    assert exact_interval(successes / n, n, 0.9) == pytest.approx((expected.low, expected.high))
    scores = np.arange(n) < successes
    assert accuracy_interval(scores.astype(float), 1, 0.9) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_large_benchmark_is_wilsons():
    scores = np.repeat([0.0, 1.0], [40, 60])
    assert accuracy_interval(scores, 1, 0.9) == wilson_interval(0.6, 100, 0.9)


def test_several_samples_narrow_an_interval_unless_they_are_all_alike():
    right = np.repeat([0.0, 1.0], [15, 15])
    low, high = accuracy_interval(right, 8, 0.95)
    assert (low, high) == pytest.approx(exact_interval(0.5, 30, 0.95))
    low, high = accuracy_interval(np.full(30, 0.5), 8, 0.95)
    assert (low, high) == pytest.approx(exact_interval(0.5, 240, 0.95))


def test_effective_n():
    assert effective_n(np.array([0.0, 1.0, 1.0, 0.0, 1.0])) == pytest.approx(5)
    assert effective_n(np.ones(7)) == 7
    assert (
        effective_n(np.array([0.5, 0.5, 0.5, 0.75])) > 4
    )  # samples that differ within problems carry more information


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_by_enumeration(n):
    for correct, k in product(range(n + 1), range(1, n + 1)):
        samples = [True] * correct + [False] * (n - correct)
        tried = [any(chosen) for chosen in combinations(samples, k)]
        assert pass_at_k([correct], n, k)[0] == pytest.approx(np.mean(tried))


def test_pass_at_k_of_more_than_was_sampled_is_refused():
    with pytest.raises(ValueError, match="take k from 1 to 4"):
        pass_at_k([1], 4, 8)


def test_macro_average_ignores_how_large_a_benchmark_is():
    scores = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    assert macro_average(scores, np.array(["a", "a", "a", "a", "b"])) == pytest.approx((0.75 + 0.0) / 2)


def test_bootstrap_is_scipys():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 5, 40) / 4, rng.integers(0, 2, 25).astype(float)
    scores, benchmarks = np.concatenate([one, two]), np.repeat(["a", "b"], [40, 25])
    drawn = bootstrap_macro_averages(scores[:, None], benchmarks, 40_000)[:, 0]
    theirs = stats.bootstrap(
        (one, two),
        lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2,
        n_resamples=40_000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    assert drawn.std() == pytest.approx(theirs.standard_error, rel=0.02)
    low, high = problem_interval(scores, benchmarks, 0.95, 40_000)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)


def test_bootstrap_keeps_scores_of_a_problem_together():
    scores = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    drawn = bootstrap_macro_averages(scores, np.array(["a", "a", "a"]), 100)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(100))


@pytest.mark.parametrize(("only_instance", "only_baseline"), [(0, 0), (5, 0), (3, 12), (40, 31)])
def test_mcnemar_is_statsmodels(only_instance, only_baseline):
    expected = mcnemar([[10, only_baseline], [only_instance, 7]], exact=True).pvalue
    assert mcnemar_test(only_instance, only_baseline) == pytest.approx(expected if np.isfinite(expected) else 1.0)


@pytest.mark.parametrize(("only_instance", "only_baseline"), [(6, 0), (3, 12), (40, 31)])
def test_flipped_signs_with_one_benchmark_are_mcnemars(only_instance, only_baseline):
    differences = np.repeat([1.0, -1.0, 0.0], [only_instance, only_baseline, 20])
    p = sign_flip_test(differences, np.repeat("a", len(differences)), 40_000)
    assert p == pytest.approx(mcnemar_test(only_instance, only_baseline), abs=0.008)


def test_flipped_signs_by_enumeration():
    differences = np.array([1.0, 0.5, -0.5, 0.0, 1.0, 1.0, -1.0, 0.5])
    benchmarks = np.array(["a", "a", "a", "a", "b", "b", "b", "c"])
    observed = macro_average(differences, benchmarks)
    flipped = [macro_average(np.array(signs) * differences, benchmarks) for signs in product([1, -1], repeat=8)]
    exact = np.mean(np.abs(flipped) >= observed - 1e-12)
    assert sign_flip_test(differences, benchmarks, 40_000) == pytest.approx(exact, abs=0.008)


def test_holm_is_statsmodels_and_counts_only_tests_that_were_made():
    p = np.random.default_rng(0).uniform(size=9) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    with_missing = holm([p[0], np.nan, p[1]])
    assert np.isnan(with_missing[1])
    assert with_missing[[0, 2]] == pytest.approx(multipletests(p[:2], method="holm")[1])


def test_seed_variance_by_hand():
    """Rows are instances, columns seeds; without their means .5 .5 -1 is left of 1 2 3, the opposite of 2 3 7."""
    variance, freedom = seed_variance(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 7.0]]))
    assert freedom == 2
    assert variance == pytest.approx(2 * (0.5**2 + 0.5**2 + 1.0**2) / 2)
    assert seed_variance(np.array([[1.0], [2.0]])).degrees_of_freedom == 0
    # a missing run takes its degree of freedom with it
    assert seed_variance(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, np.nan]])).degrees_of_freedom == 1


def test_problem_variance_by_hand():
    benchmarks, one_seed = np.array(["a", "a", "b", "b"]), np.array([[1.0, 0.0, 0.0, 0.0]])
    assert problem_variance(one_seed, benchmarks).variances == pytest.approx([0.5 / 2 / 4, 0])
    # both seeds agree: nothing is residual
    agreeing = problem_variance(np.repeat(one_seed, 2, axis=0), benchmarks)
    assert agreeing.variances == pytest.approx([0.5 / 2 / 4, 0, 0, 0]) and agreeing.freedoms.tolist() == [1, 1, 1, 1]
    # seeds disagree wholly: nothing but residual, whose mean square of 1 counts a quarter in a mean over four scores
    disagreeing = problem_variance(np.array([[1.0, 0.0], [0.0, 1.0]]), benchmarks[:2])
    assert disagreeing.variances == pytest.approx([0, -0.25])


def test_a_delta_of_one_seed_by_hand():
    """Benchmark a: .5 -> 1, benchmark b: 1 -> 1; hence .75 -> 1."""
    scores = np.array([[[1.0, 0.0, 1.0]], [[1.0, 1.0, 1.0]]])
    (delta,) = accuracy_deltas(scores, np.array(["a", "a", "b"]), LEVEL)
    assert (delta.seeds, delta.baseline, delta.instance) == (1, 0.75, 1.0)
    assert (delta.absolute, delta.relative) == pytest.approx((0.25, 1 / 3))
    assert (delta.ci_low, delta.ci_high) == pytest.approx((0.0, 0.5))
    assert delta.p == 1.0  # a single discordant problem proves nothing


def test_a_delta_of_seeds_is_students():
    """With one instance and one number per run it is the paired t-test over seeds."""
    baseline, instance = np.array([0.25, 0.5, 0.75, 0.5]), np.array([0.5, 0.75, 0.75, 1.0])
    (delta,) = metric_deltas(np.stack([baseline, instance]), LEVEL)
    expected = stats.ttest_rel(instance, baseline)
    assert delta.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(LEVEL)
    assert (delta.ci_low, delta.ci_high) == pytest.approx((interval.low, interval.high))
    assert delta.relative == pytest.approx(0.75 / 0.5 - 1)
    (of_accuracy,) = accuracy_deltas(np.stack([baseline, instance])[:, :, None], np.array(["a"]), LEVEL)
    assert of_accuracy.p == pytest.approx(expected.pvalue)


def test_a_speed_of_one_seed_has_no_interval():
    (delta,) = metric_deltas(np.array([[100.0], [110.0]]), LEVEL)
    assert (delta.seeds, delta.absolute, delta.relative) == (1, 10.0, pytest.approx(0.1))
    assert np.isnan([delta.ci_low, delta.p]).all()


def test_missing_runs_leave_the_rest():
    simulation = Simulation((60, 60), instances=3, seeds=3)
    scores = simulation.draw(np.random.default_rng(0))
    scores[2] = np.nan
    scores[3, 0] = np.nan
    deltas = list(accuracy_deltas(scores, simulation.benchmarks, LEVEL))
    assert [delta.seeds for delta in deltas] == [3, 0, 2]
    assert np.isnan(deltas[1].absolute) and not np.isnan(deltas[2].p)


def test_the_best_of_nine_zeros_is_not_zero():
    """Against the mean of the largest of nine normal variables, 1.485, with half of the variance in common."""
    assert best_by_chance([2.0] * 9) == pytest.approx(2 * 1.485 / 2**0.5, rel=0.02)
    assert np.isnan(best_by_chance([np.nan]))


# ---- the smallest delta that a study resolves --------------------------------------------------------


@pytest.mark.parametrize(("seeds", "instances"), [(2, 1), (3, 9)])
def test_a_delta_is_resolved_from_the_smallest_resolvable_size_on(seeds, instances):
    """The first of many equal deltas: Holm's correction multiplies its p by their number."""
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.01, size=(1 + instances, seeds))
    noise -= noise.mean(axis=1, keepdims=True)
    (delta, *_) = metric_deltas(0.5 + noise, 0.95)
    half_width = (delta.ci_high - delta.ci_low) / 2
    (needed,) = smallest_resolvable([half_width], [delta.standard_error], [instances], 0.95, 0.5)
    for size, is_resolved in ((1.01 * needed, True), (0.99 * needed, False)):
        shifted = 0.5 + noise
        shifted[1] += size
        adjusted = holm([delta.p for delta in metric_deltas(shifted, 0.95)])
        assert (adjusted[0] < 0.05) == is_resolved


def test_the_smallest_resolvable_delta_of_a_bootstrap_is_about_normal():
    normal = stats.norm.ppf([0.975, 1 - 0.025 / 9])
    needed = smallest_resolvable([0.019, 0.0], [0.01, 0.0], [9, 9], 0.95, 0.5)
    assert needed == pytest.approx([0.01 * normal[1], 0.0], rel=1e-4)


@pytest.mark.parametrize("power", [0.5, 0.8])
def test_a_true_delta_of_the_smallest_resolvable_size_is_resolved_with_the_stated_probability(power):
    rng, seeds, instances, error = np.random.default_rng(0), 3, 4, 0.01
    repeats, resolved = 1500, 0
    freedom = instances * (seeds - 1)
    half_width = stats.t.ppf(0.975, freedom) * error
    (delta,) = smallest_resolvable([half_width], [error], [instances], 0.95, power)
    for _ in range(repeats):
        values = error * np.sqrt(seeds / 2) * rng.normal(size=(1 + instances, seeds))
        values[1] += delta
        resolved += holm([one.p for one in metric_deltas(values, 0.95)])[0] < 0.05
    assert resolved / repeats == pytest.approx(power, abs=0.05)


@pytest.mark.parametrize("shift", [0.0, 0.004, -0.02])
def test_equivalence_is_the_paired_tost_of_statsmodels(shift):
    rng = np.random.default_rng(0)
    differences = shift + 0.1 * rng.normal(size=400)
    error = differences.std(ddof=1) / np.sqrt(400)
    delta = Delta(seeds=1, absolute=differences.mean(), standard_error=error, freedom=399)
    p, _, _ = ttost_paired(differences, np.zeros(400), -0.01, 0.01)
    found = equivalence_p(delta, 0.01, [400], samples=8)
    assert found == pytest.approx(p) if abs(delta.absolute) < 0.01 else min(found, p) > 0.99


def test_few_losses_are_no_equivalence_unless_a_loss_of_the_margin_would_show_more():
    """With 280 problems a loss of 1 point shows no wrong answer in 6 % of the studies, with 300 in less than 5 %."""
    same = Delta(seeds=1, absolute=0.0, standard_error=0.0, freedom=np.inf)
    assert equivalence_p(same, 0.01, [280], samples=1) == pytest.approx(stats.poisson.cdf(0, 2.8))
    assert stats.poisson.cdf(0, 2.8) > 0.05 and stats.poisson.cdf(4, 9) > 0.05
    assert equivalence_p(same, 0.01, [300], samples=1) < 0.05
    four = same._replace(absolute=-4 / 900, standard_error=2 / 900)
    assert equivalence_p(four, 0.01, [300] * 3, samples=1) == pytest.approx(stats.poisson.cdf(4, 9))


def false_equivalences(sizes, losing, seeds=1, samples=1, margin=0.01, repeats=REPEATS) -> float:
    """Return how often an instance that loses exactly the margin, in a few problems, is called equivalent.

    Args:
        losing: the benchmarks in which single answers become wrong, by their index.
    """
    rng = np.random.default_rng(0)
    benchmarks = np.repeat([f"b{index}" for index in range(len(sizes))], sizes)
    lost = np.zeros(len(benchmarks))
    for index in losing:
        lost[benchmarks == f"b{index}"] = margin * len(sizes) / len(losing)
    wrong = 0
    for _ in range(repeats):
        instance = 1 - (rng.random((seeds, len(lost), samples)) < lost[None, :, None]).mean(axis=-1)
        scores = np.stack([np.ones_like(instance), instance])
        (delta,) = accuracy_deltas(scores, benchmarks, LEVEL, resamples=200)
        wrong += equivalence_p(delta, margin, sizes, samples) < 0.05
    return wrong / repeats


@pytest.mark.parametrize(
    ("sizes", "losing"),
    [((100,), [0]), ((400,), [0]), ((30, 83, 500, 272, 675), [0]), ((300, 300, 300), [0, 1, 2])],
)
@pytest.mark.parametrize(("seeds", "samples"), [(1, 1), (1, 8), (3, 1)])
def test_an_instance_that_loses_the_margin_is_seldom_called_equivalent(sizes, losing, seeds, samples):
    assert false_equivalences(sizes, losing, seeds, samples, repeats=300) <= 0.065


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "losing"), [((280,), [0]), ((300, 300, 300), [0]), ((300, 300, 300), [0, 1, 2]), ((1000,), [0])]
)
@pytest.mark.parametrize("samples", [1, 8])
def test_an_instance_that_loses_the_margin_is_called_equivalent_once_in_twenty(sizes, losing, samples):
    assert false_equivalences(sizes, losing, samples=samples) <= 0.05


def test_an_equality_of_few_problems_is_no_equivalence():
    same = Delta(seeds=1, absolute=0.0, standard_error=0.0, freedom=np.inf)
    assert equivalence_p(same, 0.01, [100], samples=1) > 0.1 and equivalence_p(same, 0.01, [1000], samples=1) < 0.001
