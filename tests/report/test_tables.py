"""The tables of a report, against hand-worked cases."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nested_reft.config.sections import Sft
from nested_reft.report.collect import collect
from nested_reft.report.sources import read_sources
from nested_reft.report.tables import round_toward_zero, stages_table, strategy_counts, table1, table2
from tests import synthetic
from tests.conftest import ROOT


def test_table_2_names_its_instances_and_leaves_out_a_mean_that_a_missing_dataset_would_bend():
    cells = pd.DataFrame(
        {
            "model": "m",
            "dataset": dataset,
            "skip_ratio": 0.1,
            "border": 1,
            "mitigation": mitigation,
            "absolute_delta": delta,
            "ci_low": delta - 0.01,
            "ci_high": delta + 0.01,
            "verdict": "better",
            "standard_error": 0.01,
        }
        for dataset, deltas in {"a": (0.02, -0.03), "b": (np.nan, np.nan)}.items()
        for mitigation, delta in zip(("base", "retrace"), deltas, strict=True)
    )
    rows = table2(cells).set_index("dataset")
    assert rows.loc["a", ["best_instance", "best_delta", "worst_instance", "worst_ci_low"]].tolist() == [
        "10% base",
        0.02,
        "10% retrace",
        -0.04,
    ]
    assert rows.loc["b", "best_verdict"] == "missing"
    assert np.isnan(rows.loc["mean over datasets", "best_delta"])
    assert 0 < rows.loc["a", "best_by_chance"] < 0.01


def test_magnitudes_are_cut_off_as_the_paper_does():
    assert [round_toward_zero(value) for value in (0.00967, -0.00967, 0.009, -0.0363, 0.0)] == [
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


def test_strategy_counts():
    cells = pd.DataFrame(
        [
            {"model": model, "dataset": "d", "mitigation": mitigation, "absolute_delta": delta}
            for model, values in {"a": (1, 2, 3), "b": (3, 2, 1), "c": (3, 1, 2)}.items()
            for mitigation, delta in zip(("base", "practical", "retrace"), values, strict=True)
        ]
    )
    counts = strategy_counts(cells).set_index("mitigation")
    held = counts[["best", "worst", "neutral"]]
    assert held.loc["base"].tolist() == [2, 1, 0]
    assert held.loc["practical"].tolist() == [0, 1, 2]
    assert held.loc["retrace"].tolist() == [1, 1, 1]
    assert counts["best_by_chance"].tolist() == pytest.approx([1, 1, 1])
    assert counts["neutral_by_chance"].tolist() == pytest.approx([1, 1, 1])
    assert counts.loc["base", "best_p"] == pytest.approx(stats.binomtest(2, 3, 1 / 3).pvalue)
    tied = cells[cells["model"] == "a"].assign(**{"absolute_delta": [2, 2, 1]})
    assert strategy_counts(tied).set_index("mitigation")["best"].tolist() == [1, 1, 0]


def test_chance_of_being_neither_best_nor_worst_by_enumeration():
    """Of nine instances, three of each mitigation, the best is another's in 6 of 9 and the worst then in 5 of 8."""
    rows = [{"model": "m", "dataset": "d", "mitigation": "abc"[i % 3], "absolute_delta": float(i)} for i in range(9)]
    assert strategy_counts(pd.DataFrame(rows))["neutral_by_chance"].tolist() == pytest.approx([6 / 9 * 5 / 8] * 3)


def test_speed_ups_stand_beside_their_bounds(made_up):
    table = pd.read_csv(made_up / "report/efficiency.csv")
    of_4 = table[table["num_skipped"] == 4]
    assert of_4["bound"].tolist() == pytest.approx([28 / 24] * 9, rel=1e-5)
    assert of_4["bound_with_lm_head"].tolist() == pytest.approx([33 / 29] * 9, rel=1e-5)
    assert of_4["sampling_speed_up"].tolist() == pytest.approx([28 / 24.8] * 9, abs=0.05)


def test_the_embedded_study_has_something_to_lift():
    """In the committed report each stage adds more than its interval."""
    stages = stages_table(read_sources(ROOT / "docs/reports/embedded")).set_index("product")
    assert list(stages.index) == ["pretrained", "sft", "train (baseline)"]
    for before, after in (("pretrained", "sft"), ("sft", "train (baseline)")):
        gain = stages.loc[after, "accuracy"] - stages.loc[before, "accuracy"]
        assert gain > stages.loc[[before, after], "interval"].max()


def test_stages_of_a_study_without_warm_up_are_two(tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1).model_copy(update={"sft": Sft(num_train_epochs=0)})
    synthetic.write(study, tmp_path / "results")
    sources = collect(study, tmp_path / "results")
    assert sources.provenance["missing"] == []
    assert stages_table(sources)["product"].tolist() == ["pretrained", "train (baseline)"]
