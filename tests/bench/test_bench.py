"""The measurements of speed: what they hold and how they are taken. How fast anything is, is no test's business."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from nested_reft.bench.display import speed_figure
from nested_reft.bench.harness import estimate, overhead, quartiles, run_interleaved, speed_up, summarize
from nested_reft.bench.rollout import Rollouts, Settings, decode_seconds, load, share_of_gain, traffic
from nested_reft.bench.train import Variant, efficiency
from nested_reft.cli import app
from nested_reft.errors import UserError
from nested_reft.nesting import bounds
from nested_reft.report.statistics import median_interval
from tests.conftest import ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a measurement in a process of its own."""
    command = [sys.executable, "-m", "nested_reft", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_variants_take_turns_and_every_second_round_runs_backwards():
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
    # the median of the ratios 2, 2, 3 within rounds, not 4 / 2 = the ratio of medians of something else
    assert summary["speed_up"] == {"fast": {"median": 2.0, "ci_low": 2.0, "ci_high": 3.0}}
    assert speed_up([10.0], [4.0]) == {"median": 2.5, "ci_low": 2.5, "ci_high": 2.5}
    assert quartiles([5.0]) == {"lower_quartile": 5.0, "median": 5.0, "upper_quartile": 5.0}
    assert estimate([1.0, 1.0])["median"] == 1.0


def test_interval_of_a_median_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        low, high = median_interval(rng.normal(1.3, 0.2, size=20), 0.95, resamples=1000)
        held += low <= 1.3 <= high
    assert 0.90 <= held / 300 <= 0.99


def test_decode_steps_and_shares():
    assert decode_seconds([(1.0, 0.1), (2.0, 0.2)], 10) == pytest.approx([0.1, 0.2])
    bound, with_lm_head = bounds(28, 4, layer_parameters=10, lm_head_parameters=70)
    assert (bound, with_lm_head) == (28 / 24, 350 / 310)
    shares = share_of_gain({"median": 1.0 + (bound - 1) / 2, "ci_low": 1.0, "ci_high": bound}, bound)
    assert shares == pytest.approx({"median": 0.5, "ci_low": 0.0, "ci_high": 1.0})
    # sampling of 8 s, of which skipping 4 of 16 layers could save 2 s, and saves 1 s
    none, some = [{"step": 10.0, "generate": 8.0}] * 2, [{"step": 9.0, "generate": 7.0}] * 2
    assert efficiency(none, some, num_skipped=4, num_layers=16)["median"] == pytest.approx(0.5)


def test_bytes_that_a_decode_step_reads(small_model):
    read = traffic(small_model, num_rows=3, num_columns=10, count=2)
    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in small_model.model.layers]
    assert read["weights"] == 4 * (sum(layers) // 6 * 4 + small_model.lm_head.weight.numel())
    assert read["keys_and_values"] == 4 * 4 * 3 * 10 * 2 * 16  # bytes, layers, rows, columns, keys and values, D


def test_roll_outs_of_a_number_have_the_same_prompts_and_their_own_mask():
    settings = Settings("embedded/tiny-28", prompts=2, generations=3, prompt_length=5, new_tokens=4)
    rollouts = Rollouts(settings, *load(settings.model, "float32", torch.device("cpu")))
    prompts = rollouts.prompts(7)
    assert prompts == rollouts.prompts(7) != rollouts.prompts(8)
    assert len(prompts) == 6 and prompts[0] == prompts[2] != prompts[3] and {len(prompt) for prompt in prompts} == {5}
    assert rollouts.counts == {0.05: 1, 0.10: 3, 0.15: 4} and rollouts.num_tokens == 24
    masks = [rollouts.mask(4, index) for index in range(5)]
    assert {len(mask) for mask in masks} == {4} and all(mask != other for mask, other in pairwise(masks))


def check_summary(summary: dict, variants: list[str], pairs: int) -> None:
    """Check the form of a comparison, whose baseline is the first variant."""
    assert list(summary["seconds"]) == sorted(variants) and summary["baseline"] == variants[0]
    assert all(len(values) == pairs and min(values) > -1 for values in summary["seconds"].values())
    assert summary["orders"] == [variants[:: -1 if index % 2 else 1] for index in range(pairs)]
    assert set(summary["speed_up"]) == set(variants[1:])
    for row in summary["speed_up"].values():
        assert row["ci_low"] <= row["median"] <= row["ci_high"]
    for row in summary["quartiles"].values():
        assert row["lower_quartile"] <= row["median"] <= row["upper_quartile"]


def check_surroundings(results: dict) -> None:
    """Check that hardware, versions and threads are told."""
    assert results["device"] in ("cpu", "cuda") and results["threads"] == 1
    assert results["provenance"]["packages"]["torch"] and results["provenance"]["hardware"]["cpu_count"]


TINY_SIZES = ("--prompts", "2", "--generations", "2", "--new-tokens", "3", "--pairs", "2", "--threads", "1")


def test_roll_outs_are_measured_and_drawn(tmp_path):
    sizes = (*TINY_SIZES, "--prompt-length", "4", "--skip-ratios", "0.05,0.15", "--sampler", "engine")
    finished = bench("rollout", "embedded/tiny-28", *sizes, "--json", str(tmp_path / "rollout.json"))
    assert finished.returncode == 0, finished.stderr
    assert "decode step" in finished.stdout and "Peak memory" in finished.stdout
    results = json.loads((tmp_path / "rollout.json").read_text())
    check_surroundings(results)
    assert results["settings"]["prompt_length"] == 4
    check_summary(results["generate"], ["generate", "engine"], 2)
    assert set(results["generate"]["tokens_per_second"]) == {"generate", "engine"}
    assert results["generate"]["peak_memory"]["gib"] and "process" in results["generate"]["peak_memory"]["of"]
    check_summary(results["skip"]["rollout"], ["0", "1", "4"], 2)
    check_summary(results["skip"]["decode_step"], ["0", "1", "4"], 2)
    assert [row["num_skipped"] for row in results["skip"]["rows"]] == [1, 4]
    for row in results["skip"]["rows"]:
        assert 1 < row["bound_with_lm_head"] < row["bound"]
        assert {"rollout_speed_up", "decode_speed_up", "share_of_bound", "share_of_bound_with_lm_head"} < set(row)
    check_summary(results["mask"], ["fixed", "new"], 2)
    check_summary(results["renewal"], ["float32", "copy, renewed", "copy, not renewed", "renewal alone"], 2)

    drawn = bench("figure", str(tmp_path / "rollout.json"), "--out", str(tmp_path / "speed"))
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "speed.png").stat().st_size and (tmp_path / "speed.svg").stat().st_size
    assert len(speed_figure([results, results]).axes) == 4


def test_optimizer_steps_are_measured():
    from nested_reft.bench.train import measure_train

    settings = Settings("embedded/tiny-28", [0.15], prompts=2, generations=2, new_tokens=3, sampler="engine", pairs=2)
    results = json.loads(json.dumps(measure_train(settings, samplers=["engine"])))
    names = ["stock", "engine, k = 0", "engine, k = 4"]
    assert [Variant("stock").name, Variant("engine").name, Variant("engine", 4).name] == names
    assert results["steps"]["orders"] == [names, names[::-1]] and set(results["steps"]["seconds"]) == set(names)
    assert set(results["phases"]["stock"]) == {"step", "optimizer"}
    for name in names[1:]:
        assert set(results["phases"][name]) == {"step", "generate", "score", "fwd_bwd", "optimizer"}
        for row in results["samples"][name]:  # the parts of a step are not more than it
            assert 0 < sum(seconds for phase, seconds in row.items() if phase != "step") <= row["step"]
    assert [(row["sampler"], row["num_skipped"]) for row in results["skip"]] == [("engine", 4)]
    assert results["num_layers"] == 28 and results["peak_memory_gib"] is None


@pytest.mark.slow
def test_training_and_evaluation_are_measured_with_all_samplers(tmp_path):
    sizes = ("--prompts", "2", "--generations", "2", "--new-tokens", "20", "--pairs", "1", "--threads", "1")
    path = tmp_path / "train.json"
    finished = bench(
        "train", "embedded/tiny-28", *sizes, "--skip-ratios", "0.15", "--peak-memory", "--json", str(path)
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(path.read_text())
    check_surroundings(results)
    names = ["stock", "engine-compiled, k = 0", "engine-compiled, k = 4", "engine, k = 0", "engine, k = 4"]
    check_summary(results["steps"], names, 1)
    assert set(results["peak_memory_gib"]) == set(names)

    few = ("--problems", "4", "--batch-size", "2", "--new-tokens", "32", "--pairs", "2", "--threads", "1")
    finished = bench("eval", "embedded/tiny-28", *few, "--json", str(tmp_path / "eval.json"))
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "eval.json").read_text())
    check_surroundings(results)
    check_summary(results["evaluation"], ["generate", "engine", "engine-compiled"], 2)
    assert set(results["problems_per_second"]) == {"generate", "engine", "engine-compiled"}


@pytest.mark.slow
def test_the_measurement_for_a_gpu_runs_as_a_toy(tmp_path):
    command = [sys.executable, "nested_reft/bench/gpu.py", "--toy", "--out", str(tmp_path / "gpu.json")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["not_measured"] == {}
    assert [row["settings"]["model"] for row in results["rollouts"]] == ["qwen2.5-1.5b", "qwen2.5-7b"]
    for row in results["rollouts"]:
        assert set(row["generate"]["seconds"]) == {"generate", "engine-compiled", "engine"}
        assert row["log_prob_errors"]["mean"] <= row["log_prob_errors"]["largest"] < 1e-4  # float32
        assert row["mask"]["num_skipped"] == 2 and [of_k["num_skipped"] for of_k in row["skip"]["rows"]] == [1, 2]
        assert [of_k["num_skipped"] for of_k in row["bandwidth"]["rows"]] == [0, 1, 2]
    assert set(results["train"]["steps"]["seconds"]) == {"stock", "engine, k = 0", "engine, k = 2"}
    assert (tmp_path / "gpu.png").exists() and (tmp_path / "gpu.svg").exists()


def test_what_does_not_fit_into_the_budget_is_named(tmp_path):
    arguments = ["--toy", "--budget", "-1", "--out", str(tmp_path / "gpu.json")]
    finished = subprocess.run(
        [sys.executable, "nested_reft/bench/gpu.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    not_measured = json.loads((tmp_path / "gpu.json").read_text())["not_measured"]
    assert set(not_measured) == {"qwen2.5-1.5b/model", "qwen2.5-7b/model", "train"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rollout", "some/model"), "'some/model' is not here; give a folder"),
        (("rollout", "embedded/tiny-29"), "is not an embedded model"),
        (("rollout", "embedded/tiny-28", "--skip-ratios", "0.99"), "which skips 28 of the 28 layers"),
        (("rollout", "embedded/tiny-28", "--skip-ratios", "none"), "give numbers from 0 to 1"),
        (("rollout", "embedded/tiny-28", "--dtype", "int8"), "give float32 or bfloat16"),
        (("train", "nowhere"), "'nowhere' does not exist here"),
        (("eval", "qwen2.5-7b"), "give a trained model"),
        (
            ("rollout", "embedded/tiny-28", "--json", "nowhere/a.json"),
            "nowhere/a.json cannot be written: nowhere is no",
        ),
        (("figure", str(ROOT / "README.md"), "--out", "nowhere"), "give such files alone"),
        (
            ("figure", str(ROOT / "README.md"), "--out", "nowhere/a"),
            "nowhere/a cannot be written: nowhere is no folder",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence(arguments, told):
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        app(["bench", *arguments], standalone_mode=False)
    assert "\n" not in str(raised.value)


def test_bad_input_exits_with_2():
    finished = bench("figure", "README.md", "--out", "nowhere")
    assert finished.returncode == 2
    assert finished.stderr.startswith("Error: ") and finished.stderr.count("\n") == 1


def test_overhead_of_a_study_by_hand(tmp_path):
    """Two jobs of 60 and 30 s that ended at 100 and 110 s: 90 s of work in 70 s of two cores."""
    for name, seconds, end in (("sft/a.tsv", 60, 100), ("train/b/c.tsv", 30, 110)):
        table = tmp_path / name
        table.parent.mkdir(parents=True)
        table.write_text(f"s\th:m:s\n{seconds}\t0:01:00\n")
        os.utime(table, (end, end))
    measured = overhead(tmp_path, cores=2)
    assert (measured["jobs"], measured["wall_s"]) == (2, pytest.approx(70))
    assert measured["overhead"] == pytest.approx(1 - 90 / 140)
    printed = bench("overhead", str(tmp_path / "none"), "--cores", "2")
    assert printed.returncode == 2 and "holds no resource tables" in printed.stderr
