"""Predicted power is what simulated studies show, hand-worked cases, and the command's answers and refusals."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.errors import UserError
from nested_reft.plan.power import (
    Costs,
    Design,
    Error,
    Pilot,
    allocations,
    best_allocation,
    cell_seconds,
    equivalence_power,
    false_claims,
    power,
    read_study,
    seeds_for_margin,
    smallest_delta,
    standard_error,
)
from nested_reft.report.statistics import accuracy_deltas, equivalence_p
from nested_reft.report.variance import Estimates
from tests.conftest import ROOT

DESIGN = Design(seeds=3, samples=1, sizes=(100,), instances=1, confidence=0.95, margin=0.01)


def pilot(seed=0.0, problem=0.0, interaction=0.0, sampling=0.0) -> Pilot:
    """Return the variances of a delta, alike on all benchmarks."""
    parts = (np.array([value]) for value in (problem, interaction, sampling))
    return Pilot(seed, *parts, "a test")


# ---- hand-worked cases --------------------------------------------------------------------------------


def test_the_smallest_delta_of_one_seed_is_a_sum_of_two_normal_quantiles():
    one_seed = DESIGN._replace(seeds=1)
    found = smallest_delta(pilot(seed=0.1, sampling=0.25), one_seed)  # the error is 5 points; seeds do not count
    assert found == pytest.approx(0.05 * (1.959964 + 0.841621), rel=1e-4)
    after_holm = smallest_delta(pilot(sampling=0.25), one_seed._replace(instances=9))
    assert after_holm == pytest.approx(0.05 * (stats.norm.ppf(1 - 0.025 / 9) + 0.841621), rel=1e-4)


def test_the_standard_error_by_hand():
    design = Design(seeds=4, samples=2, sizes=(10, 40), instances=3, confidence=0.95, margin=0.01)
    given = Pilot(0.0004, np.array([0.01, 0.02]), np.array([0.1, 0.2]), np.array([0.2, 0.4]), "a test")
    problems, residuals = [0.01 / 10 / 4, 0.02 / 40 / 4], [0.2 / 10 / 4 / 4, 0.4 / 40 / 4 / 4]
    of_seeds = 0.0004 / 4 + sum(residuals)
    error = standard_error(given, design)
    assert error.size == pytest.approx(math.sqrt(sum(problems) + of_seeds))
    between = [problem + residual for problem, residual in zip(problems, residuals, strict=True)]
    assert error.parts.variances == pytest.approx([of_seeds, *between, *(-residual for residual in residuals)])
    assert error.parts.freedoms.tolist() == [9, 9, 39, 27, 117]


def known(size: float, freedom: float = math.inf) -> Error:
    """Return a standard error whose square a study estimates with a number of degrees of freedom."""
    return Error(size, Estimates(np.array([size**2]), np.array([freedom])))


@pytest.mark.parametrize("freedom", [2, 5, 30])
def test_power_is_that_of_the_noncentral_t(freedom):
    found = power([0.0, 0.02, 0.05], known(0.01, freedom), DESIGN)
    critical, shifts = stats.t.ppf(0.975, freedom), np.array([0.0, 2.0, 5.0])
    expected = stats.nct.sf(critical, freedom, shifts) + stats.nct.cdf(-critical, freedom, shifts)
    assert found == pytest.approx(expected, abs=2e-3)


def test_equivalence_power_of_a_known_error():
    large = DESIGN._replace(sizes=(10_000,), margin=0.05)
    found = equivalence_power(0.0, known(0.02), large)
    assert found == pytest.approx(2 * stats.norm.cdf(2.5 - 1.644854) - 1, abs=1e-6)
    assert equivalence_power(0.05, known(0.02), large) == pytest.approx(0.05, abs=2e-3)  # at the margin
    # thirty problems cannot show that one in a hundred is not lost, however equal their answers are
    assert equivalence_power(0.0, known(1e-9), DESIGN._replace(sizes=(30,))) == 0.0


def test_the_seeds_for_a_margin_are_the_fewest():
    given, design = pilot(seed=0.0005, problem=0.001, interaction=0.06), DESIGN._replace(sizes=(500, 500))
    seeds = seeds_for_margin(given, design)
    reached = [
        equivalence_power(0.0, standard_error(given, changed), changed)
        for changed in (design._replace(seeds=seeds), design._replace(seeds=seeds - 1))
    ]
    assert seeds > 3 and reached[0] >= 0.8 > reached[1]
    assert seeds_for_margin(pilot(seed=0.0005, problem=0.5), design) is None  # the problems alone are too noisy


def test_what_is_unknown_stays_unknown():
    no_seed = pilot(seed=math.nan, sampling=0.2)
    assert math.isnan(smallest_delta(no_seed, DESIGN)) and seeds_for_margin(no_seed, DESIGN) is None
    assert smallest_delta(no_seed, DESIGN._replace(seeds=1)) > 0
    no_sampling = pilot(seed=0.0001, interaction=0.1, sampling=math.nan)
    assert smallest_delta(no_sampling, DESIGN) == smallest_delta(no_sampling, DESIGN._replace(samples=8))


def test_a_budget_goes_where_it_helps():
    design, given = (
        DESIGN._replace(sizes=(200, 200)),
        pilot(seed=0.0001, problem=0.001, interaction=0.01, sampling=0.4),
    )

    def best(costs: Costs, variances: Pilot = given):
        return best_allocation(list(allocations(variances, design, costs, 400_000.0)))

    slow_training, slow_answers = best(Costs(10_000.0, 0.01)), best(Costs(10.0, 10.0))
    assert slow_training.design.samples > slow_answers.design.samples
    assert slow_training.design.sizes == (200, 200) and slow_answers.design.seeds > slow_training.design.seeds
    for costs, found in ((Costs(10_000.0, 0.01), slow_training), (Costs(10.0, 10.0), slow_answers)):
        assert found.seconds == cell_seconds(found.design, costs) <= 400_000.0
        for seeds, samples in ((2, 1), (5, 4), (20, 1)):  # no other design that the budget pays for finds less
            other = design._replace(seeds=seeds, samples=samples)
            if cell_seconds(other, costs) <= 400_000.0:
                assert found.delta <= 1.01 * smallest_delta(given, other)
    assert best(Costs(10_000.0, 0.01), pilot(seed=0.0001, interaction=0.4, sampling=math.nan)).design.samples == 1
    assert best(Costs(1e9, 1.0)) is None


# ---- simulated studies --------------------------------------------------------------------------------

# The variances of the effects on the chance of a right answer, which is 1/2 on average.
SHARED, OWN_SEED, OWN_PROBLEM, OWN_INTERACTION = 0.01, 0.0004, 0.002, 0.002


def simulate(design: Design, delta: float, repeats: int, seed: int) -> tuple[float, float]:
    """Return how often the first instance is found to differ, and how often it is called equivalent.

    Each answer is right or wrong. The baseline and the instances share what makes a problem hard, and nothing else.
    """
    rng, n = np.random.default_rng(seed), sum(design.sizes)
    benchmarks = np.repeat([f"b{index}" for index in range(len(design.sizes))], design.sizes)
    runs, found = 1 + design.instances, np.zeros(2)

    def effect(variance: float, *shape: int) -> np.ndarray:
        return math.sqrt(3 * variance) * rng.uniform(-1, 1, size=shape)

    for _ in range(repeats):
        chance = 0.5 + effect(SHARED, 1, 1, n) + effect(OWN_SEED, runs, design.seeds, 1)
        chance = chance + effect(OWN_PROBLEM, runs, 1, n) + effect(OWN_INTERACTION, runs, design.seeds, n)
        chance -= delta / 2
        chance[1] += delta
        scores = rng.binomial(design.samples, chance) / design.samples
        first = next(accuracy_deltas(scores, benchmarks, design.confidence, resamples=2000))
        equivalent = equivalence_p(first, design.margin, design.sizes, design.samples)
        level = (1 - design.confidence) / design.instances  # the first step of Holm's correction
        found += first.p < level, equivalent < level
    return tuple(found / repeats)


def predicted(design: Design, delta: float) -> tuple[float, float]:
    """Return what `simulate` should return."""
    error = standard_error(simulated_pilot(), design)
    return float(power(delta, error, design)), equivalence_power(delta, error, design)


def simulated_pilot() -> Pilot:
    """Return the variances of a delta in `simulate`."""
    sampling = 0.25 - SHARED - OWN_SEED - OWN_PROBLEM - OWN_INTERACTION
    return pilot(2 * OWN_SEED, 2 * OWN_PROBLEM, 2 * OWN_INTERACTION, 2 * sampling)


CASES = [
    Design(seeds=3, samples=1, sizes=(120, 200), instances=4, confidence=0.95, margin=0.1),
    Design(seeds=5, samples=4, sizes=(60, 60), instances=2, confidence=0.95, margin=0.06),
    Design(seeds=2, samples=1, sizes=(30, 83, 300), instances=9, confidence=0.95, margin=0.2),
]


@pytest.mark.parametrize("design", CASES[:2], ids=["one sample", "four samples"])
def test_predicted_power_is_that_of_simulated_studies(design):
    delta = smallest_delta(simulated_pilot(), design)
    for place, true in ((0, delta), (1, 0.0)):
        found = simulate(design, true, 300, seed=place)[place]
        assert found == pytest.approx(predicted(design, true)[place], abs=0.08)  # three standard errors


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("design", CASES, ids=["one sample", "four samples", "small benchmarks"])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_predicted_power_is_within_three_points_of_simulated_power(design, share):
    true = share * smallest_delta(simulated_pilot(), design)
    found = simulate(design, true, 4000, seed=1)
    assert found == pytest.approx(predicted(design, true), abs=0.03)


@pytest.mark.parametrize("repeats", [300, pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.slow])])
def test_one_seed_shows_differences_of_seeds_as_often_as_predicted(repeats):
    design = Design(seeds=1, samples=1, sizes=(400, 400), instances=2, confidence=0.95, margin=0.01)
    found, _ = simulate(design, 0.0, repeats, seed=2)
    assert 0.05 < false_claims(simulated_pilot(), design) < 0.5
    tolerance = 0.03 if repeats == 2000 else 0.07
    assert found == pytest.approx(false_claims(simulated_pilot(), design), abs=tolerance)
    assert false_claims(pilot(sampling=0.2), design) == pytest.approx(0.025)


# ---- the command --------------------------------------------------------------------------------------


def ask(*options: str) -> str:
    """Return what the command prints, in one line."""
    done = CliRunner().invoke(app, ["power", *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return " ".join(done.output.split())


def test_a_finished_study_says_what_more_seeds_would_find(tmp_path):
    report = ROOT / "docs/reports/embedded-full"
    said = ask("--from", str(report), "--figure", str(tmp_path / "power.png"))
    given, design, _ = read_study(report)
    for seeds in (3, 10):
        delta = 100 * smallest_delta(given, design._replace(seeds=seeds))
        assert f" {seeds} {delta:.1f} " in said
    assert "sampling unknown" in said and "after Holm's correction over 9 instances" in said
    assert (
        "What more samples per problem change is unknown" in said
        and "Cheapest allocation with the smallest delta: 3 seeds" in said
    )
    assert {path.name for path in tmp_path.iterdir()} == {"power.png", "power.svg"}


def test_standard_deviations_take_the_place_of_a_study():
    options = ["--problems", "30,500", "--sample-sd", "40,60", "--seed-sd", "1"]
    said = ask(*options, "--seeds", "2", "--budget", "10", "--training-seconds", "100", "--answer-seconds", "1")
    assert "seed 1.0, choice of problems 0.0, seed x problem 0.0, sampling 3.9" in said  # sqrt(.16/30 + .36/500) / 2
    assert "Budget for a cell, the 10 runs of each seed: 10 h" in said
    one_seed = ask("--problems", "30,500", "--sample-sd", "40,60", "--seeds", "1")
    assert "What several seeds find is unknown" in one_seed


def test_a_study_of_one_seed_says_what_it_does_not_know():
    said = ask("--from", str(ROOT / "docs/reports/embedded"))
    assert "seed unknown, choice of problems 1.1, seed x problem unknown, sampling unknown" in said
    assert "What several seeds find is unknown" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seeds", "3"], "the variances are missing; give the report of a finished study with --from"),
        (["--problems", "30,x", "--sample-sd", "40"], "--problems is '30,x'; give numbers of 2 or more"),
        (["--problems", "30,83", "--sample-sd", "1,2,3"], "--sample-sd has 3 numbers, and --problems names 2"),
        (["--problems", "30", "--sample-sd", "40"], "the variance between seeds is unknown; give --seed-sd"),
        (["--problems", "30", "--sample-sd", "40", "--seeds", "1", "--budget", "2"], "the costs are unknown"),
        (["--from", str(ROOT / "docs/reports/embedded"), "--seed-sd", "1"], "leave out --seed-sd"),
        (["--from", str(ROOT / "docs/reports/embedded"), "--seeds", "3"], "the variance between seeds is unknown"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(options, sentence):
    with pytest.raises(UserError) as error:
        ask(*options)
    assert sentence in str(error.value)


def test_the_command_needs_neither_torch_nor_trl():
    code = "import sys, nested_reft.plan.power_text; print({'torch', 'trl', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
