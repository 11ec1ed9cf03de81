"""The facts of the answer, against hand-worked cases."""

import pandas as pd
import pytest
from scipy import stats

from nested_reft.report.answer import accuracy_facts, off_policy_facts, speed_facts, timing_noise


def runs(*seconds: tuple[str, float, int, float]) -> pd.DataFrame:
    """Return training runs of one model: dataset, skip ratio, seed, seconds of the forward and backward passes."""
    table = pd.DataFrame(seconds, columns=["dataset", "skip_ratio", "seed", "fwd_bwd_s"])
    return table.assign(model="m", mitigation="base", border=1)


def test_noise_is_what_the_times_of_a_cell_differ_by_that_skipping_does_not_change():
    cells = runs(("a", 0.0, 0, 10.0), ("a", 0.1, 0, 12.0), ("b", 0.0, 0, 20.0), ("b", 0.1, 0, 30.0))
    assert timing_noise(cells) == {"lowest": 20.0, "highest": 30.0, "spread": 0.5}
    seeds = runs(("a", 0.0, 0, 10.0), ("a", 0.0, 1, 30.0), ("a", 0.1, 0, 30.0), ("a", 0.1, 1, 14.0))
    assert timing_noise(seeds) == {"lowest": 20.0, "highest": 22.0, "spread": pytest.approx(0.1)}
    assert timing_noise(runs(("a", 0.0, 0, 10.0))) is None


@pytest.mark.parametrize(("seconds", "is_noise"), [(10.5, False), (13.0, True)])
def test_speeds_are_noise_if_the_control_varies_more(seconds, is_noise):
    deltas = pd.DataFrame({"metric": "token_speed_tok_s", "relative_delta": [0.1, -0.2]})
    efficiency = pd.DataFrame({"sampling_speed_up": [1.1, 1.2, None], "bound": 1.3, "bound_with_lm_head": 1.2})
    facts = speed_facts(deltas, efficiency, runs(("a", 0.0, 0, 10.0), ("a", 0.1, 0, seconds)))
    assert facts["sampling_is_noise"] == facts["steps_are_noise"] == is_noise
    assert facts["speed_up"] == {
        "number": 2,
        "lowest": 1.1,
        "median": pytest.approx(1.15),
        "highest": 1.2,
        "bound": 1.3,
        "bound_with_lm_head": 1.2,
    }


def accuracy_deltas(*rows: tuple[float | None, float | None, float | None, str]) -> pd.DataFrame:
    """Return accuracy deltas of one cell, with the interval -1 to 5 points: baseline, instance, delta, verdict."""
    deltas = pd.DataFrame(rows, columns=["baseline", "instance", "absolute_delta", "verdict"])
    constant = {"metric": "accuracy", "model": "m", "dataset": "d", "ci_low": -0.01, "ci_high": 0.05}
    return deltas.assign(**constant, standard_error=0.03 / stats.norm.ppf(0.975))


def test_accuracies_are_those_of_the_finished_pairs():
    rows = [(0.9, 0.8, -0.1, "resolved"), (0.9, 0.92, 0.02, "not resolved"), (None, None, None, "missing")]
    facts = accuracy_facts(accuracy_deltas(*rows), 0.95)
    assert facts["num_tested"] == 2 and facts["num_baselines"] == 1
    assert facts["baseline"]["lowest"] == facts["baseline"]["highest"] == 0.9
    assert (facts["with_skipping"]["lowest"], facts["with_skipping"]["highest"]) == (0.8, 0.92)
    assert (facts["lower"]["number"], facts["lower"]["highest"], facts["higher"]["number"]) == (1, 0.1, 0)
    assert facts["unresolved"]["number"] == 1 and facts["unresolved"]["half_width"] == pytest.approx(0.03)
    # two tests: Holm's correction compares the smaller p with 0.025
    needed = 0.03 * stats.norm.ppf(1 - 0.0125) / stats.norm.ppf(0.975)
    assert facts["unresolved"]["resolvable"] == pytest.approx(needed, rel=1e-3)


def test_the_two_largest_changes_are_named_whatever_their_sign():
    rows = [(0.5, 0.5 + change, change, "resolved") for change in (0.1, -0.3, -0.2)]
    facts = accuracy_facts(accuracy_deltas(*rows), 0.95)
    assert [row["absolute_delta"] for row in facts["largest_resolved"]] == [-0.3, -0.2]
    assert facts["unresolved"] is None


def test_off_policyness_is_the_mean_of_the_medians_of_runs_at_the_lowest_and_the_highest_skip_ratio():
    rows = [(0.0, 0, 0.0), *((0.05, seed, kl) for seed, kls in enumerate([(0.1, 0.2, 9.0), (0.4,)]) for kl in kls)]
    steps = pd.DataFrame([*rows, (0.1, 0, 0.4), (0.15, 0, 0.5)], columns=["skip_ratio", "seed", "sampling/kl"])
    steps = steps.assign(model="m", dataset="d", border=1, mitigation="base", **{"sampling/ess": 1.0})
    facts = off_policy_facts(steps.assign(**{"sampling/acceptance_rate": 1 - steps["sampling/kl"]}))
    assert facts == [
        {"skip_ratio": 0.05, "kl": pytest.approx(0.3), "acceptance": pytest.approx(0.7)},
        {"skip_ratio": 0.15, "kl": 0.5, "acceptance": 0.5},
    ]
