"""How the skipped layers are chosen: pure functions of (seed, step, parameters, calibration)."""

import random

import pytest

from nested_reft.config.sections import Nesting
from nested_reft.errors import NestingError
from nested_reft.nesting import draw_skipped_layers, valid_layers
from nested_reft.strategies import STRATEGIES, Calibration, choose_layers

VALID = valid_layers(28, 1)
# The layers do less and less, and every further layer lowers the overlap.
PLANTED = Calibration({layer: 1 / layer for layer in VALID}, {1: 0.97, 2: 0.94, 3: 0.9, 4: 0.86})


def nesting_of(strategy, **others):
    return Nesting(strategy=strategy, skipped_layers=[3, 20, 9, 4] if strategy == "fixed" else [], **others)


def predicted(layers):
    return sum(PLANTED.layer_kl[layer] for layer in layers)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_a_pure_function_of_seed_and_step(strategy):
    def draws():
        return [
            choose_layers(VALID, 4, seed, step, nesting_of(strategy), PLANTED) for seed in (0, 1) for step in range(30)
        ]

    state, first = random.getstate(), draws()
    assert draws() == first and random.getstate() == state
    for layers in first:
        assert layers == sorted(set(layers)) and len(layers) == 4 and set(layers) <= set(VALID)
    assert (len({tuple(layers) for layers in first}) == 1) if strategy == "fixed" else (first[:30] != first[30:])
    assert choose_layers(VALID, 0, 0, 0, nesting_of(strategy)) == []  # the baseline, without a calibration


def test_uniform_is_the_draw_of_the_paper():
    assert choose_layers(VALID, 4, 0, 0, Nesting()) == draw_skipped_layers(VALID, 4, 0, 0) == [1, 14, 18, 24]


def test_calibrated_prefers_sets_of_a_low_kl_and_stays_diverse():
    drawn = [choose_layers(VALID, 4, 0, step, nesting_of("calibrated"), PLANTED) for step in range(300)]
    uniform = [draw_skipped_layers(VALID, 4, 0, step) for step in range(1200)]
    groups = [uniform[start : start + 4] for start in range(0, 1200, 4)]
    assert [predicted(layers) for layers in drawn] == [min(map(predicted, group)) for group in groups]
    assert sum(map(predicted, drawn)) / 300 < 0.6 * sum(map(predicted, uniform)) / 1200
    assert len({layer for layers in drawn for layer in layers}) >= 25  # all layers but perhaps the worst


def test_budget_takes_the_largest_size_whose_overlap_is_enough():
    def size(tau, k=4):
        chosen = choose_layers(VALID, k, 0, 5, nesting_of("budget", budget_tau=tau), PLANTED)
        assert chosen == choose_layers(VALID, len(chosen), 0, 5, nesting_of("calibrated"), PLANTED)
        return len(chosen)

    taus = [0.5, 0.86, 0.861, 0.9, 0.93, 0.95, 0.97, 0.971, 0.99]
    assert [size(tau) for tau in taus] == [4, 4, 3, 3, 2, 1, 1, 0, 0]
    assert size(0.5, k=2) == 2  # no more than the skip ratio asks for


@pytest.mark.parametrize("strategy", ["calibrated", "budget"])
@pytest.mark.parametrize(
    "calibration",
    [None, PLANTED._replace(layer_kl=dict.fromkeys(VALID[1:], 0.1)), PLANTED._replace(overlap_p5={1: 0.9})],
    ids=["missing", "another border", "a smaller skip ratio"],
)
def test_a_calibration_that_does_not_fit_is_refused_with_the_remedy(strategy, calibration):
    words = f"strategy {strategy} needs a calibration of the layers 1 to 26 and of 1 to 4 of them skipped; make one by"
    with pytest.raises(NestingError, match=words):
        choose_layers(VALID, 4, 0, 0, nesting_of(strategy), calibration)


def test_default_keys_are_not_part_of_the_settings():
    """So that the trainings of studies that were made before these keys stay finished."""
    assert {"strategy", "skipped_layers", "budget_tau"}.isdisjoint(Nesting().model_dump())
    chosen = Nesting(strategy="budget", budget_tau=0.9).model_dump()
    assert (chosen["strategy"], chosen["budget_tau"]) == ("budget", 0.9)
