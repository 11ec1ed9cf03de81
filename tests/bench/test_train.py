"""The measurement of optimizer steps."""

import json

import pytest

from nested_reft.bench.rollout import RolloutBenchSettings
from nested_reft.bench.train import Variant, efficiency, measure_train, peak_memories
from tests.bench.checks import bench, check_environment_info, check_summary


def test_share_of_the_ideal_saving_that_reaches_a_step():
    """Sampling takes 8 s; skipping 4 of 16 layers could save 2 s, and saves 1 s."""
    none, some = [{"step": 10.0, "generate": 8.0}] * 2, [{"step": 9.0, "generate": 7.0}] * 2
    assert efficiency(none, some, num_skipped=4, num_layers=16)["median"] == pytest.approx(0.5)


def test_optimizer_steps_are_measured():
    settings = RolloutBenchSettings(
        "embedded/tiny-28", [0.15], prompts=2, generations=2, new_tokens=3, sampler="engine", rounds=2
    )
    results = json.loads(
        json.dumps(measure_train(settings, samplers=["engine"], in_bfloat16=True, share_prompts=True))
    )
    trainers = ["engine", "engine, bfloat16", "engine, bfloat16, shared prompts"]
    names = ["stock", *(f"{trainer}, k = {k}" for trainer in trainers for k in (0, 4))]
    assert [Variant("stock").name, Variant("engine").name, Variant("engine", 4).name] == names[:3]
    assert results["steps"]["orders"] == [names, names[::-1]] and set(results["steps"]["seconds"]) == set(names)
    assert set(results["phases"]["stock"]) == {"step", "optimizer"}
    for name in names[1:]:
        assert set(results["phases"][name]) == {"step", "generate", "score", "fwd_bwd", "optimizer"}
        for row in results["samples"][name]:  # the phases take at most as long as the step
            assert 0 < sum(seconds for phase, seconds in row.items() if phase != "step") <= row["step"]
    of_skipping = [(row["sampler"], row["num_skipped"]) for row in results["skip"]]
    assert of_skipping == [(trainer, 4) for trainer in trainers]
    assert results["num_layers"] == 28 and results["peak_memory_gib"] is None


@pytest.mark.slow
@pytest.mark.nightly  # the test above measures the same with one sampler
def test_training_is_measured_with_all_samplers(tmp_path):
    sizes = ("--prompts", "2", "--generations", "2", "--new-tokens", "20", "--rounds", "1", "--threads", "1")
    path = tmp_path / "train.json"
    finished = bench("train", "embedded/tiny-28", *sizes, "--skip-ratios", "0.15", "--json", str(path))
    assert finished.returncode == 0, finished.stderr
    results = json.loads(path.read_text())
    check_environment_info(results)
    names = ["stock", "engine-compiled, k = 0", "engine-compiled, k = 4", "engine, k = 0", "engine, k = 4"]
    check_summary(results["steps"], names, 1)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own():
    settings = RolloutBenchSettings("embedded/tiny-28", [0.15], prompts=2, generations=2, new_tokens=2, rounds=1)
    peaks = peak_memories(settings, [Variant("stock"), Variant("engine", 4)])
    assert set(peaks) == {"stock", "engine, k = 4"} and all(0.1 < peak < 10 for peak in peaks.values())
