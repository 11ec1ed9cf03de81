"""Corrections by measurements."""

import pytest

from nested_reft.plan.cards import CARDS
from nested_reft.plan.measured import factors_of, planned_step

SETTINGS = {"model": "qwen2.5-1.5b", "prompts": 2, "generations": 4, "prompt_length": 20, "new_tokens": 16}
SETTINGS |= {"dtype": "bfloat16"}
H100 = CARDS["h100"]


def rollout(times: float):
    """Return a result of `bench rollout` that took `times` the planned time."""
    seconds = times * planned_step(SETTINGS, "engine", 20, H100)["generate"]
    return {"settings": SETTINGS, "generate": {"tokens_per_second": {"engine": {"median": 2 * 4 * 16 / seconds}}}}


def test_a_rollout_that_took_twice_as_long():
    assert list(factors_of({"bench": "rollout", **rollout(2.0)}, H100)) == [("generate", pytest.approx(2.0))]


def test_parts_that_the_gpu_benchmark_did_not_measure_are_left_out():
    results = {"bench": "gpu", "rollouts": [rollout(0.5), {"settings": SETTINGS, "generate": None}], "train": None}
    assert list(factors_of(results, H100)) == [("generate", pytest.approx(0.5))]


def test_the_step_without_skipped_layers_of_a_training():
    planned = planned_step(SETTINGS, "engine", 60, H100)
    phases = {"generate": planned["generate"], "fwd_bwd": 3 * planned["update"], "optimizer": planned["optimizer"]}
    step = {name: {"median": seconds} for name, seconds in phases.items()}
    results = {"bench": "train", "settings": SETTINGS, "phases": {"stock": {}, "engine, k = 0": step}}
    expected = {"generate": 1.0, "update": 3.0, "optimizer": 1.0}
    assert dict(factors_of(results, H100)) == pytest.approx(expected)
