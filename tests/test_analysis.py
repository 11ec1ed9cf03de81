"""Deltas and tables, against hand-worked cases and the paper's own numbers."""

import pandas as pd
import pytest
from scipy import stats

from nested_reft import plots
from nested_reft.analysis import deltas, overall, stages_table, strategy_counts, table1, table2, truncated

from .conftest import ROOT

# Table 2 of the paper: per model and dataset the best and the worst delta.
PAPER = {
    "1.5B": {"SVAMP": (0.008, -0.016), "GSM8K": (0.015, -0.006), "Math12k": (0.026, -0.005)},
    "7B": {"SVAMP": (0.022, -0.070), "GSM8K": (0.010, -0.017), "Math12k": (-0.003, -0.022)},
}


def test_table_2_of_the_paper():
    cells = pd.DataFrame(
        {"model": model, "dataset": dataset, "absolute_delta/accuracy": delta}
        for model, datasets in PAPER.items()
        for dataset, (best, worst) in datasets.items()
        for delta in (best, (best + worst) / 2, worst)
    )
    table = table2(cells).set_index(["model", "instance"])
    assert table["mean_magnitude"].tolist() == [0.016, 0.009, 0.009, 0.036]
    assert table.loc[("7B", "best"), "Math12k"] == -0.003
    assert table.loc[("7B", "worst"), "SVAMP"] == -0.070


def test_magnitudes_are_cut_off_as_the_paper_does():
    assert [truncated(value) for value in (0.00967, -0.00967, 0.009, -0.0363, 0.0)] == [
        0.009,
        0.009,
        0.009,
        0.036,
        0.0,
    ]


def test_table_1():
    table = table1({"tiny-28": {"num_layers": 28, "width": 64}}, [0.05, 0.1, 0.15])
    assert table.values.tolist() == [["tiny-28", 28, 64, 1, 3, 4]]
    assert list(table.columns) == ["model", "N", "W", "5%", "10%", "15%"]


def trained(skip_ratio, mitigation, seed, accuracy, speed, seconds):
    run = {"model": "m", "dataset": "d", "skip_ratio": skip_ratio, "mitigation": mitigation, "seed": seed}
    return run | {"accuracy": accuracy, "token_speed_tok_s": speed, "train_runtime_s": seconds}


def test_deltas_are_taken_within_a_seed_and_averaged():
    rows = pd.DataFrame(
        [
            trained(0.0, "base", 0, 0.5, 100, 10.0),
            trained(0.1, "base", 0, 0.6, 110, 8.0),
            trained(0.0, "base", 1, 0.8, 200, 20.0),
            trained(0.1, "base", 1, 0.7, 220, 18.0),
        ]
    )
    (row,) = deltas(rows).to_dict("records")
    assert row["absolute_delta/accuracy"] == pytest.approx((0.1 - 0.1) / 2)
    assert row["relative_delta/accuracy"] == pytest.approx((0.1 / 0.5 - 0.1 / 0.8) / 2)
    assert row["absolute_delta/token_speed_tok_s"] == pytest.approx((10 + 20) / 2)
    assert row["relative_delta/train_runtime_s"] == pytest.approx((-0.2 - 0.1) / 2)


def test_strategy_counts():
    cells = pd.DataFrame(
        [
            {"model": model, "dataset": "d", "mitigation": mitigation, "absolute_delta/accuracy": delta}
            for model, values in {"a": (1, 2, 3), "b": (3, 2, 1), "c": (3, 1, 2)}.items()
            for mitigation, delta in zip(("base", "practical", "retrace"), values, strict=True)
        ]
    )
    counts = strategy_counts(cells).set_index("mitigation")
    assert counts.loc["base"].tolist() == [2, 1, 0]
    assert counts.loc["practical"].tolist() == [0, 1, 2]
    assert counts.loc["retrace"].tolist() == [1, 1, 1]
    tied = cells[cells["model"] == "a"].assign(**{"absolute_delta/accuracy": [2, 2, 1]})
    assert strategy_counts(tied).set_index("mitigation")["best"].tolist() == [1, 1, 0]


def test_overall_is_the_unweighted_mean_over_benchmarks():
    run = trained(0.1, "base", 0, 0, 1, 1) | {"stage": "train", "num_skipped": 3, "mean_reward": 0.0}
    phases = dict.fromkeys(("generate_s", "score_s", "fwd_bwd_s", "optimizer_s"), 0.0)
    table = pd.DataFrame(
        [run | phases | {"benchmark": b, "accuracy": a, "n": n} for b, a, n in (("x", 0.5, 100), ("y", 0.9, 10))]
    )
    (row,) = overall(table, 0.95).to_dict("records")
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["accuracy_half"] == pytest.approx(1.95996 * ((0.25 / 100 + 0.09 / 10) ** 0.5) / 2, rel=1e-5)


def test_the_embedded_study_has_something_to_lift():
    """In the committed report each stage adds more than its interval."""
    rows = overall(pd.read_csv(ROOT / "reports/embedded/results.csv"), 0.95)
    stages = stages_table(rows).set_index("stage")
    assert list(stages.index) == ["pretrained", "SFT", "ReFT baseline"]
    for before, after in (("pretrained", "SFT"), ("SFT", "ReFT baseline")):
        gain = stages.loc[after, "accuracy"] - stages.loc[before, "accuracy"]
        assert gain > stages.loc[[before, after], "interval"].max()


def test_the_reward_of_every_embedded_run_rises():
    """In the committed report: the slope of a straight line through the reward curve, for each of the ten runs."""
    steps = pd.read_csv(ROOT / "reports/embedded/steps.csv")
    slopes = {
        run: stats.linregress(curve["step"], curve["reward"]).slope
        for run, curve in steps.groupby(["skip_ratio", "mitigation"])
    }
    assert len(slopes) == 10
    assert all(slope > 0 for slope in slopes.values()), slopes


def test_the_same_table_gives_the_same_figure_files(tmp_path):
    steps = pd.read_csv(ROOT / "reports/embedded/steps.csv")
    for name in ("one", "two"):
        plots.save(plots.reward_curves(steps), tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
