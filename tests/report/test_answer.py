"""The facts of the answer, against hand-worked cases."""

import pandas as pd
import pytest
from scipy import stats

from nested_reft.report.answer import accuracy_facts, off_policy_facts, sampling_noise, speed_facts, timing_noise


def runs(*seconds: tuple[str, float, int, float]) -> pd.DataFrame:
    """Return training runs of one model: dataset, skip ratio, seed, seconds of the forward and backward passes."""
    table = pd.DataFrame(seconds, columns=["dataset", "skip_ratio", "seed", "fwd_bwd_s"])
    return table.assign(model="m", mitigation="base", border=1, generated_tok_s=100.0)


def test_noise_is_what_the_times_of_a_cell_differ_by_that_skipping_does_not_change():
    cells = runs(("a", 0.0, 0, 10.0), ("a", 0.1, 0, 12.0), ("b", 0.0, 0, 20.0), ("b", 0.1, 0, 30.0))
    assert timing_noise(cells) == {"lowest": 20.0, "highest": 30.0, "spread": 0.5}
    seeds = runs(("a", 0.0, 0, 10.0), ("a", 0.0, 1, 30.0), ("a", 0.1, 0, 30.0), ("a", 0.1, 1, 14.0))
    assert timing_noise(seeds) == {"lowest": 20.0, "highest": 22.0, "spread": pytest.approx(0.1)}
    assert timing_noise(runs(("a", 0.0, 0, 10.0))) is None


def test_the_noise_of_sampling_is_the_spread_of_instances_that_skip_equally_many_layers():
    timed = runs(*[("a", ratio, seed, 10.0) for ratio in (0.0, 0.1, 0.1, 0.2) for seed in (0, 1)])
    timed["mitigation"] = ["base"] * 4 + ["retrace"] * 2 + ["base"] * 2
    timed["generated_tok_s"] = [50.0, 50.0, 100.0, 110.0, 120.0, 132.0, 500.0, 500.0]
    assert sampling_noise(timed) == pytest.approx(126 / 105 - 1)
    assert sampling_noise(timed[timed["mitigation"] == "base"]) is None
    ratios = {"skip_ratio": [0.1, 0.2], "sampling_speed_up": [1.15, 1.25]}
    efficiency = pd.DataFrame(ratios | {"bound": 2.0, "bound_with_lm_head": 2.0})
    deltas = pd.DataFrame({"metric": "token_speed_tok_s", "relative_delta": [0.1, 0.2], "skip_ratio": [0.1, 0.2]})
    facts = speed_facts(deltas, efficiency, timed)
    assert [row["skip_ratio"] for row in facts["sampling_in_noise"]] == [0.1]  # 15 % are less than 20 %
    assert [row["skip_ratio"] for row in facts["sampling_shown"]] == [0.2] and not facts["sampling_is_noise"]
    assert facts["steps_in_noise"] == []  # the forward and backward passes took equally long


@pytest.mark.parametrize(("seconds", "is_noise"), [(10.5, False), (13.0, True)])
def test_speeds_are_noise_if_the_control_varies_more(seconds, is_noise):
    deltas = pd.DataFrame({"metric": "token_speed_tok_s", "relative_delta": [0.1, 0.2], "skip_ratio": 0.1})
    speeds = {"sampling_speed_up": [1.1, 1.2, None], "skip_ratio": 0.1}
    efficiency = pd.DataFrame(speeds | {"bound": 1.3, "bound_with_lm_head": 1.2})
    facts = speed_facts(deltas, efficiency, runs(("a", 0.0, 0, 10.0), ("a", 0.1, 0, seconds)))
    assert facts["sampling_is_noise"] == facts["steps_are_noise"] == is_noise
    assert facts["speed_up"] == {
        "number": 2,
        "lowest": 1.1,
        "median": pytest.approx(1.15),
        "highest": 1.2,
        "bound": 1.3,
        "bound_with_lm_head": 1.2,
        "by_ratio": [{"skip_ratio": 0.1, "median": pytest.approx(1.15), "bound": 1.3}],
    }


def test_speeds_are_stated_for_each_skip_ratio_with_its_own_bound_and_noise():
    ratios, bounds = [0.05, 0.05, 0.15], [1.04, 1.04, 1.17]
    deltas = pd.DataFrame({"metric": "token_speed_tok_s", "relative_delta": [-0.01, 0.03, 0.09], "skip_ratio": ratios})
    speeds = {"sampling_speed_up": [1.0, 1.06, 1.15], "skip_ratio": ratios}
    efficiency = pd.DataFrame(speeds | {"bound": bounds, "bound_with_lm_head": 1.0})
    timed = runs(("a", 0.0, 0, 10.0), ("a", 0.1, 0, 10.5))
    facts = speed_facts(deltas, efficiency, timed)
    assert facts["speed_up"]["by_ratio"] == [
        {"skip_ratio": 0.05, "median": pytest.approx(1.03), "bound": 1.04},
        {"skip_ratio": 0.15, "median": 1.15, "bound": 1.17},
    ]
    assert [row["skip_ratio"] for row in facts["sampling_in_noise"]] == [0.05]
    assert [row["skip_ratio"] for row in facts["steps_in_noise"]] == [0.05]
    assert not facts["sampling_is_noise"] and not facts["steps_are_noise"]
    assert (
        facts["above_bound"] and not facts["too_noisy"]
    )  # one instance is 2% above its bound, within the noise of 5%
    efficiency["sampling_speed_up"] += 0.2
    assert speed_facts(deltas, efficiency, timed)["too_noisy"]


def accuracy_deltas(*rows: tuple[float | None, float | None, float | None, str]) -> pd.DataFrame:
    """Return accuracy deltas of one cell, with the interval -1 to 5 points: baseline, instance, delta, verdict."""
    deltas = pd.DataFrame(rows, columns=["baseline", "instance", "absolute_delta", "verdict"])
    constant = {"metric": "accuracy", "model": "m", "dataset": "d", "ci_low": -0.01, "ci_high": 0.05}
    return deltas.assign(**constant, standard_error=0.03 / stats.norm.ppf(0.975), seeds=1, covers="problems")


def test_accuracies_are_those_of_the_finished_pairs():
    rows = [(0.9, 0.8, -0.1, "worse"), (0.9, 0.92, 0.02, "inconclusive"), (None, None, None, "missing")]
    facts = accuracy_facts(accuracy_deltas(*rows), 0.95, 1)
    assert facts["num_tested"] == 2 and facts["num_baselines"] == 1
    assert facts["baseline"]["lowest"] == facts["baseline"]["highest"] == 0.9
    assert (facts["with_skipping"]["lowest"], facts["with_skipping"]["highest"]) == (0.8, 0.92)
    assert facts["counts"] == {"worse": 1, "better": 0, "equivalent": 0, "inconclusive": 1, "waiting": 0}
    assert facts["inconclusive"]["number"] == 1 and facts["half_width"]["median"] == pytest.approx(0.03)
    # two tests: Holm's correction compares the smaller p with 0.025
    unit = 0.03 / stats.norm.ppf(0.975)
    assert facts["resolvable"]["median"] == pytest.approx(unit * stats.norm.ppf(1 - 0.0125), rel=1e-3)
    detectable = unit * (stats.norm.ppf(1 - 0.0125) + stats.norm.ppf(0.8))
    assert facts["detectable"]["lowest"] == pytest.approx(detectable, rel=1e-3)
    assert facts["coverage"] == "problems within benchmarks (one seed)" and facts["miss_zero"] == 0


def test_the_sizes_that_would_be_seen_are_a_range_if_the_intervals_differ_in_width():
    deltas = accuracy_deltas(*[(0.5, 0.5, 0.0, "inconclusive")] * 3)
    deltas = deltas.assign(
        ci_low=[-0.01, 0.02, -0.03], ci_high=[0.01, 0.06, 0.03], standard_error=[0.005, 0.01, 0.015]
    )
    facts = accuracy_facts(deltas, 0.95, 1)
    assert facts["detectable"]["highest"] == pytest.approx(3 * facts["detectable"]["lowest"], rel=0.05)
    assert facts["miss_zero"] == 1  # the interval from 2 to 6 points
    agreeing = deltas.assign(ci_low=0.0, ci_high=0.0, standard_error=0.0)
    assert accuracy_facts(agreeing, 0.95, 1)["detectable"] is None


def test_the_intervals_cover_the_seeds_that_each_comparison_has():
    deltas = accuracy_deltas(*[(0.5, 0.5, 0.0, "inconclusive")] * 3)
    for seeds, covers, said, fewer in (
        ([3, 3, 3], "seeds, problems", "3 seeds and problems within benchmarks", 0),
        ([3, 1, 2], "seeds, problems", "1 to 3 seeds (runs are missing) and problems within benchmarks", 2),
        ([1, 1, 1], "problems", "problems within benchmarks (one seed)", 3),
    ):
        facts = accuracy_facts(deltas.assign(seeds=seeds, covers=covers), 0.95, 3)
        assert (facts["coverage"], facts["with_fewer_seeds"]) == (said, fewer)
        assert facts["covers_seeds"] == (covers != "problems")


def test_the_two_largest_changes_are_named_whatever_their_sign():
    changes = {0.1: "better", -0.3: "worse", -0.2: "worse", -0.001: "equivalent"}
    rows = [(0.5, 0.5 + change, change, verdict) for change, verdict in changes.items()]
    facts = accuracy_facts(accuracy_deltas(*rows), 0.95, 1)
    assert [row["absolute_delta"] for row in facts["largest"]] == [-0.3, -0.2]
    assert [row["verdict"] for row in facts["found"]] == ["worse", "worse", "better", "equivalent"]
    assert facts["inconclusive"] is None


def test_off_policyness_is_the_mean_of_the_medians_of_runs_at_the_lowest_and_the_highest_skip_ratio():
    rows = [(0.0, 0, 0.0), *((0.05, seed, kl) for seed, kls in enumerate([(0.1, 0.2, 9.0), (0.4,)]) for kl in kls)]
    steps = pd.DataFrame([*rows, (0.1, 0, 0.4), (0.15, 0, 0.5)], columns=["skip_ratio", "seed", "sampling/kl"])
    steps = steps.assign(model="m", dataset="d", border=1, mitigation="base", **{"sampling/ess": 1.0})
    facts = off_policy_facts(steps.assign(**{"sampling/acceptance_rate": 1 - steps["sampling/kl"]}))
    assert facts == [
        {"skip_ratio": 0.05, "kl": pytest.approx(0.3), "acceptance": pytest.approx(0.7)},
        {"skip_ratio": 0.15, "kl": 0.5, "acceptance": 0.5},
    ]
