"""The measurement of roll-outs: what is compared, and the form of its results."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from nested_reft.bench import rollout
from nested_reft.bench.display import rollout_table, speed_figure
from nested_reft.bench.rollout import (
    RolloutBenchSettings,
    Rollouts,
    bytes_read,
    decode_seconds,
    load,
    share_of_gain,
    skip_counts,
)
from nested_reft.nesting import bounds
from tests.bench.checks import TINY_SIZES, bench, check_environment_info, check_summary


def test_decode_steps_and_shares_of_the_gain():
    assert decode_seconds([(1.0, 0.1), (2.0, 0.2)], 10) == pytest.approx([0.1, 0.2])
    bound, with_lm_head = bounds(28, 4, layer_parameters=10, lm_head_parameters=70)
    assert (bound, with_lm_head) == (28 / 24, 350 / 310)
    shares = share_of_gain({"median": 1.0 + (bound - 1) / 2, "ci_low": 1.0, "ci_high": bound}, bound)
    assert shares == pytest.approx({"median": 0.5, "ci_low": 0.0, "ci_high": 1.0})


def test_bytes_that_a_decode_step_reads(small_model):
    read = bytes_read(small_model, batch_size=3, num_columns=10, count=2)
    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in small_model.model.layers]
    assert read["weights"] == 4 * (sum(layers) // 6 * 4 + small_model.lm_head.weight.numel())
    assert read["keys_and_values"] == 4 * 4 * 3 * 10 * 2 * 16  # bytes, layers, rows, columns, keys and values, D


def test_roll_outs_of_an_index_have_the_same_prompts_and_their_own_skipped_layers():
    settings = RolloutBenchSettings("embedded/tiny-28", prompts=2, generations=3, prompt_length=5, new_tokens=4)
    model, tokenizer = load(settings.model, "float32", torch.device("cpu"))
    counts = skip_counts(model, settings.skip_ratios, settings.model)
    rollouts = Rollouts(settings, model, tokenizer, counts)
    prompts = rollouts.prompts(7)
    assert prompts == rollouts.prompts(7) != rollouts.prompts(8)
    assert len(prompts) == 6 and prompts[0] == prompts[2] != prompts[3] and {len(prompt) for prompt in prompts} == {5}
    assert rollouts.counts == {0.05: 1, 0.10: 3, 0.15: 4} and rollouts.num_tokens == 24
    skip_sets = [rollouts.skipped_layers(4, index) for index in range(5)]
    assert {len(skipped) for skipped in skip_sets} == {4}
    assert all(skipped != other for skipped, other in pairwise(skip_sets))


def test_what_cannot_be_measured_is_named(monkeypatch):
    refuse_copies = lambda engine, *_, **__: None if engine.model is engine.source else "of its rounding"  # noqa: E731
    settings = RolloutBenchSettings(
        "embedded/tiny-28", [0.05], prompts=1, generations=2, new_tokens=2, sampler="engine", rounds=1
    )
    monkeypatch.setattr(rollout, "unsupported_reason", refuse_copies)
    results = rollout.measure_rollout(settings)
    reason = "the engine engine cannot be measured: of its rounding"
    assert results["left_out"] == {"a bfloat16 copy of the weights": reason} and results["skip"]
    assert f"Not measured: a bfloat16 copy of the weights: {reason}" in rollout_table(results)
    monkeypatch.setattr(rollout, "unsupported_reason", lambda *_, **__: "of a reason")
    results = rollout.measure_rollout(settings)
    assert set(results["generate"]["seconds"]) == {"generate"} and results["skip"] is None
    assert "Not measured: everything but `generate`: the engine engine cannot be" in rollout_table(results)


def test_roll_outs_are_measured_and_drawn(tmp_path):
    sizes = (*TINY_SIZES, "--prompt-length", "4", "--skip-ratios", "0.05,0.15", "--sampler", "engine")
    finished = bench("rollout", "embedded/tiny-28", *sizes, "--json", str(tmp_path / "rollout.json"))
    assert finished.returncode == 0, finished.stderr
    assert "decode step" in finished.stdout and "Peak memory" in finished.stdout
    results = json.loads((tmp_path / "rollout.json").read_text())
    check_environment_info(results)
    assert results["settings"]["prompt_length"] == 4
    check_summary(results["generate"], ["generate", "engine"], 2)
    assert set(results["generate"]["tokens_per_second"]) == {"generate", "engine"}
    assert results["generate"]["peak_memory"]["gib"] and "process" in results["generate"]["peak_memory"]["of"]
    check_summary(results["skip"]["rollout"], ["0", "1", "4"], 2)
    check_summary(results["skip"]["decode_step"], ["0", "1", "4"], 2, are_differences=True)
    for name, steps in results["skip"]["decode_step"]["seconds"].items():
        times = zip(results["skip"]["rollout"]["seconds"][name], results["skip"]["first_token"][name], strict=True)
        assert steps == pytest.approx(decode_seconds(list(times), 3))
    assert [row["num_skipped"] for row in results["skip"]["rows"]] == [1, 4]
    for row in results["skip"]["rows"]:
        assert 1 < row["bound_with_lm_head"] < row["bound"]
        assert {"rollout_speed_up", "decode_speed_up", "share_of_bound", "share_of_bound_with_lm_head"} < set(row)
    check_summary(results["new_skip_set"], ["fixed", "new"], 2)
    variants = ["float32", "copy, synchronized", "copy, not synchronized", "synchronization alone", "generate"]
    check_summary(results["weight_copy"], variants, 2)
    copied = results["weight_copy"]
    ratios = np.divide(copied["seconds"]["generate"], copied["seconds"]["copy, synchronized"])
    assert copied["copy_over_generate"]["median"] == pytest.approx(np.median(ratios))
    assert all(set(found) == {"seconds", "flops", "square_flops"} for found in results["products"].values())
    assert set(results["products"]) == {"float32", "bfloat16"} and not results["left_out"]
    share = results["products"]["bfloat16"]["seconds"] * 3 / copied["quartiles"]["copy, synchronized"]["median"]
    assert results["share_of_products"]["engine, bfloat16 copy"] == pytest.approx(share)
    assert set(results["share_of_products"]) == {"generate", "engine", "engine, bfloat16 copy"}

    drawn = bench("figure", str(tmp_path / "rollout.json"), "--out", str(tmp_path / "speed"))
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "speed.png").stat().st_size and (tmp_path / "speed.svg").stat().st_size
    assert len(speed_figure([results, results]).axes) == 4
