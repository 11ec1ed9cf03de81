"""The slope of the accuracy agrees with simpler tests where they exist, and errs as seldom as it says."""

import importlib.util

import numpy as np
import pytest
from scipy import stats

from nested_reft.report.statistics import accuracy_deltas, macro_average
from nested_reft.report.trend import cell_slope, centered_ranks, ordering_test, pooled_trend
from tests.conftest import ROOT
from tests.report.test_statistics import LEVEL, Simulation

spec = importlib.util.spec_from_file_location("trend_power", ROOT / "examples" / "trend_power.py")
simulated = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulated)
SHARES, draw_cells = simulated.SHARES, simulated.draw_cells  # the grid of the paper: three mitigations, three ratios


def rejections(sizes, cells, seeds, seed_sd, repeats, slope=0.0) -> tuple[float, float]:
    """Return how often the slope and the order of the accuracies are significant at the level 0.05."""
    rng, found = np.random.default_rng(0), np.zeros(2)
    for repeat in range(repeats):
        scores, benchmarks = draw_cells(rng, sizes, cells, seeds, seed_sd, slope)
        trend = pooled_trend([cell_slope(cell, SHARES, benchmarks) for cell in scores], benchmarks, LEVEL)
        averages = [macro_average(cell, benchmarks) for cell in scores]
        # Each study draws its own permutations: 400 place the limit of significance with an error of their own.
        found += [trend.p < 0.05, ordering_test(averages, SHARES, resamples=400, seed=repeat) < 0.05]
    return tuple(found / repeats)


@pytest.mark.parametrize(("cells", "seeds", "seed_sd"), [(1, 1, 0.0), (2, 3, 0.3)])
def test_without_an_effect_one_study_in_twenty_has_a_trend(cells, seeds, seed_sd):
    slope, order = rejections((30, 60, 90), cells, seeds, seed_sd, repeats=600)
    assert 0.03 < slope < 0.075 and 0.03 < order < 0.075


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 3, 6])
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.0), (3, 0.3)])
def test_without_an_effect_one_large_study_in_twenty_has_a_trend(cells, seeds, seed_sd):
    slope, order = rejections((30, 83, 200), cells, seeds, seed_sd, repeats=2000)
    assert 0.035 < slope <= 0.06 and 0.035 < order <= 0.06  # 0.05 and two standard errors of 2,000 repeats


def test_a_trend_is_found_more_often_than_any_of_nine_deltas():
    slope, order, single = simulated.power(slope=2.0, repeats=100)
    assert slope > order > single + 0.2


def test_the_true_loss_of_the_simulation_is_that_of_many_studies():
    rng, lost = np.random.default_rng(0), []
    for _ in range(200):
        (scores,), benchmarks = draw_cells(rng, simulated.SIZES, 1, 3, simulated.SEED_SD, slope=2.0)
        averages = macro_average(scores, benchmarks)
        lost.append(averages[0].mean() - averages[SHARES == SHARES.max()].mean())  # noqa: SIM300
    assert np.mean(lost) == pytest.approx(simulated.true_loss(2.0), abs=3 * np.std(lost) / np.sqrt(200))


@pytest.mark.nightly
@pytest.mark.slow
def test_a_trend_is_more_powerful_at_equal_size():
    sizes = simulated.power(slope=0.0, repeats=2000)
    assert (sizes <= 0.06).all()  # 0.05 and two standard errors of 2,000 repeats
    slope, order, single = simulated.power(slope=1.0, repeats=2000)
    assert slope > order > single + 0.1


@pytest.mark.parametrize(
    ("repeats", "tolerance"),
    [(300, 0.25), pytest.param(2000, 0.1, marks=[pytest.mark.nightly, pytest.mark.slow])],
)
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.2)])
def test_the_covariance_of_the_slopes_is_that_of_repeated_studies(seeds, seed_sd, repeats, tolerance):
    rng, slopes, variances = np.random.default_rng(3), [], []
    for _ in range(repeats):
        scores, benchmarks = draw_cells(rng, (30, 60, 90), 3, seeds, seed_sd, shared_sd=0.8)
        cells = [cell_slope(cell, SHARES, benchmarks) for cell in scores]
        slopes.append([cell.slope for cell in cells])
        # the variances of the single cells, and that of their mean, which contains their covariances
        found = [
            pooled_trend(group, benchmarks, LEVEL).standard_error ** 2
            for group in ([cells[0]], [cells[1]], [cells[2]], cells)
        ]
        variances.append([np.mean(found[:3]), found[3]])
    seen = np.cov(np.transpose(slopes))
    alone, together = np.mean(variances, axis=0)
    assert alone == pytest.approx(np.diag(seen).mean(), rel=tolerance)
    assert together == pytest.approx(seen.mean(), rel=tolerance)
    between = seen[~np.eye(3, dtype=bool)].mean()
    assert (9 * together - 3 * alone) / 6 == pytest.approx(between, rel=2 * tolerance)
    assert between > 0.1 * alone  # the cells are not independent


def test_the_slope_of_two_instances_is_their_delta():
    rng = np.random.default_rng(2)
    simulation = Simulation((40, 60), instances=1, seeds=3, seed_sd=0.2)
    scores, shares = simulation.draw(rng), np.array([0.0, 0.1])
    trend = pooled_trend([cell_slope(scores, shares, simulation.benchmarks)], simulation.benchmarks, LEVEL)
    (delta,) = accuracy_deltas(scores, simulation.benchmarks, LEVEL)
    assert trend.slope == pytest.approx(delta.absolute / 0.1)
    assert (trend.ci_low, trend.ci_high) == pytest.approx((delta.ci_low / 0.1, delta.ci_high / 0.1))
    assert trend.p == pytest.approx(delta.p) and trend.covers_seeds


def test_the_slope_of_one_seed_is_a_test_of_the_slopes_of_problems():
    rng = np.random.default_rng(3)
    simulation = Simulation((80,), instances=9)
    scores = simulation.draw(rng)
    trend = pooled_trend([cell_slope(scores, SHARES, simulation.benchmarks)], simulation.benchmarks, LEVEL)
    slopes = np.polyfit(SHARES, scores[:, 0], 1)[0]
    tested = stats.ttest_1samp(slopes, 0)
    assert trend.slope == pytest.approx(slopes.mean()) and trend.p == pytest.approx(tested.pvalue)
    assert (trend.ci_low, trend.ci_high) == pytest.approx(tuple(tested.confidence_interval(LEVEL)))
    assert not trend.covers_seeds


def test_cells_with_the_same_answers_count_once():
    rng = np.random.default_rng(4)
    simulation = Simulation((80, 40), instances=9)
    cell = cell_slope(simulation.draw(rng), SHARES, simulation.benchmarks)
    once, twice = (pooled_trend([cell] * times, simulation.benchmarks, LEVEL) for times in (1, 2))
    assert twice.p == pytest.approx(once.p) and twice.ci_low == pytest.approx(once.ci_low)


def test_missing_runs_leave_the_slope_of_the_others():
    rng = np.random.default_rng(5)
    simulation = Simulation((50,), instances=9, seeds=2)
    scores = simulation.draw(rng)
    scores[4, 1] = np.nan
    of_seeds = [
        np.polyfit(SHARES[present], scores[present, seed].mean(axis=1), 1)[0]
        for seed, present in enumerate([np.ones(10, bool), np.arange(10) != 4])
    ]
    assert cell_slope(scores, SHARES, simulation.benchmarks).slope == pytest.approx(np.mean(of_seeds))
    scores[1:] = np.nan
    assert cell_slope(scores, SHARES, simulation.benchmarks) is None
    assert np.isnan(pooled_trend([], simulation.benchmarks, LEVEL).slope)


def test_the_order_of_accuracies_is_pages_test():
    rng = np.random.default_rng(6)
    accuracies, shares = rng.random((5, 4)) - np.arange(5)[:, None] / 15, np.arange(5) / 28
    # Each cell has one seed, so that the cells are the blocks of Page's test.
    ours = ordering_test([accuracies[:, [seed]] for seed in range(4)], shares, resamples=40_000)
    one_sided = stats.page_trend_test(-accuracies.T, method="exact").pvalue
    assert ours == pytest.approx(2 * one_sided, rel=0.1)


def test_ranks_share_their_mean():
    np.testing.assert_allclose(centered_ranks(np.array([0.2, 0.1, 0.2, 0.3])), stats.rankdata([2, 1, 2, 3]) - 2.5)
