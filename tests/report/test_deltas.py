"""Deltas of a made-up study, against its files and against what was put into it."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nested_reft.config import layout
from nested_reft.report.collect import collect
from nested_reft.report.deltas import covers, delta_table, equivalence_ps, mcnemar_table, overall, verdict
from nested_reft.report.sources import read_sources
from nested_reft.report.statistics import Delta, accuracy_deltas, holm, mcnemar_test
from tests import synthetic


def test_overall_is_the_unweighted_mean_over_benchmarks():
    run = {"product": "train", "model": "m", "dataset": "d", "skip_ratio": 0.1, "border": 1, "mitigation": "base"}
    run |= {"seed": 0}
    table = pd.DataFrame(
        [run | {"benchmark": b, "accuracy": a, "n": n} for b, a, n in (("x", 0.5, 100), ("y", 0.9, 10))]
    )
    assert overall(table)["accuracy"].tolist() == pytest.approx([0.7])


def test_deltas_of_a_study_are_those_of_its_files(made_up):
    """One cell put together by hand from the records, without the code that reads a study."""
    study, records = synthetic.study(models=1), {}
    cell = "train/model~small-28/dataset~algebra"
    for path, axes in layout.products(study):
        if path.startswith(cell):
            frame = pd.read_parquet(made_up / "results/evaluate" / path / "records.parquet")
            records[axes["skip_ratio"], axes["mitigation"], axes["seed"]] = frame["correct"].to_numpy(float)
    instances = list(dict.fromkeys((ratio, name) for ratio, name, _ in records))
    scores = np.stack([np.stack([records[*instance, seed] for seed in (0, 1)]) for instance in instances])
    expected = list(accuracy_deltas(scores, frame["benchmark"].to_numpy(str), 0.95))
    table = pd.read_csv(made_up / "report/deltas.csv")
    table = table[(table["dataset"] == "algebra") & (table["metric"] == "accuracy")]
    assert list(zip(table["skip_ratio"], table["mitigation"], strict=True)) == instances[1:]
    assert table["absolute_delta"].tolist() == pytest.approx([delta.absolute for delta in expected], rel=1e-4)
    assert table["relative_ci_high"].tolist() == pytest.approx([d.relative_ci_high for d in expected], rel=1e-4)
    assert table["p_holm"].tolist() == pytest.approx(list(holm([delta.p for delta in expected])), rel=1e-3)
    assert set(table["seeds"]) == {2} and set(table["covers"]) == {"seeds, problems"}


def test_what_was_put_in_is_found_and_nothing_else(made_up):
    table = pd.read_csv(made_up / "report/deltas.csv")
    worse = table[(table["metric"] == "accuracy") & (table["verdict"] == "worse")]
    found = set(zip(worse["dataset"], worse["skip_ratio"], worse["mitigation"], strict=True))
    assert found == {(dataset, 0.15, "practical") for dataset in ("one-step", "multi-step", "algebra")}


def test_mcnemar_table_counts_discordant_problems(made_up):
    sources = read_sources(made_up / "report")
    table = mcnemar_table(sources)
    assert len(table) == 3 * 9 * 2 * 4  # datasets x instances x seeds x (benchmarks and all)
    row = table[(table["benchmark"] == "all problems") & (table["mitigation"] == "practical")].iloc[-1]
    chosen = sources.problem_scores[
        (sources.problem_scores["product"] == "train") & (sources.problem_scores["dataset"] == row["dataset"])
    ]
    chosen = chosen[chosen["seed"] == row["seed"]].set_index(["benchmark", "problem_id"])
    instance = chosen[(chosen["skip_ratio"] == row["skip_ratio"]) & (chosen["mitigation"] == "practical")][
        "num_correct"
    ]
    baseline = chosen[chosen["skip_ratio"] == 0]["num_correct"]
    difference = instance - baseline
    assert row["only_instance"] == (difference == 1).sum() and row["only_baseline"] == (difference == -1).sum()
    assert row["p"] == mcnemar_test(row["only_instance"], row["only_baseline"]) and row["n"] == 150


def test_one_seed_says_that_it_covers_problems_only(tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path / "results", effect=-1.5)
    sources = collect(study, tmp_path / "results")
    table = delta_table(sources)
    assert set(table["seeds"]) == {1}
    accuracy, speed = table[table["metric"] == "accuracy"], table[table["metric"] == "token_speed_tok_s"]
    assert set(accuracy["covers"]) == {"problems"} and set(speed["covers"]) == {"nothing"}
    assert speed["p"].isna().all() and set(speed["verdict"]) == {"inconclusive"}
    assert accuracy.set_index(["skip_ratio", "mitigation"]).loc[(0.15, "practical"), "verdict"] == "worse"


@pytest.mark.parametrize(
    ("metric", "delta", "expected"),
    [
        ("accuracy", Delta(), "missing"),
        ("accuracy", Delta(seeds=1, p=0.5), "problems"),
        ("accuracy", Delta(seeds=3, p=0.5, covers_seeds=True), "seeds, problems"),
        ("accuracy", Delta(seeds=1, p=0.5, covers_seeds=True), "seeds, problems"),  # others of the cell have more
        ("train_runtime_s", Delta(seeds=1), "nothing"),
        ("train_runtime_s", Delta(seeds=3, p=0.5, covers_seeds=True), "seeds"),
    ],
)
def test_an_interval_covers_what_was_repeated(metric, delta, expected):
    assert covers(metric, delta) == expected


NONE = float("nan")


@pytest.mark.parametrize(
    ("delta", "p", "p_equivalent", "lower_is_better", "expected"),
    [
        (NONE, NONE, NONE, False, "missing"),
        (-0.002, 0.6, 0.04, False, "equivalent"),
        (-0.004, 0.001, 0.04, False, "equivalent"),  # not zero, but too small to matter
        (0.03, 0.049, 0.9, False, "better"),
        (-0.03, 0.049, 0.9, False, "worse"),
        (-0.03, 0.051, 0.9, False, "inconclusive"),
        (0.0, 1.0, 0.06, False, "inconclusive"),
        (12.0, 0.01, NONE, False, "better"),  # a speed has no margin
        (12.0, 0.01, NONE, True, "worse"),  # a longer run time
        (-12.0, 0.01, NONE, True, "better"),
        (12.0, NONE, NONE, False, "inconclusive"),  # one seed: no test of a speed
    ],
)
def test_a_verdict_follows_from_the_two_tests(delta, p, p_equivalent, lower_is_better, expected):
    assert verdict(delta, p, p_equivalent, 0.95, lower_is_better) == expected


def test_equivalence_counts_the_problems_of_the_cell_and_their_samples():
    """A sample is 1 / (2 samples x 2 benchmarks x 4 problems): the margin is 0.16 of them, and none was seen."""
    sizes = {"x": 4, "y": 16}
    rows = [(name, index, 2) for name, size in sizes.items() for index in range(size)]
    scores = pd.DataFrame(rows * 3, columns=["benchmark", "problem_id", "samples"])  # three runs
    same = Delta(seeds=1, absolute=0.0, standard_error=0.0, freedom=np.inf)
    (p, nothing) = equivalence_ps([same, Delta()], scores, 0.01)
    assert p == pytest.approx(stats.poisson.pmf(0, 0.16)) and np.isnan(nothing)
    assert np.isnan(equivalence_ps([Delta()], scores.head(0), 0.01)).all()


def test_the_table_holds_the_p_of_the_margin_after_holms_correction(made_up):
    sources = read_sources(made_up / "report")
    wide = sources._replace(config=sources.config | {"analysis": {"confidence": 0.95, "margin": 20.0}})
    table = delta_table(wide)
    accuracy = table[table["metric"] == "accuracy"]
    cell = accuracy[accuracy["dataset"] == "algebra"]
    assert cell["p_equivalent_holm"].tolist() == pytest.approx(list(holm(cell["p_equivalent"])))
    assert "equivalent" in set(accuracy["verdict"])
    assert table.query("metric != 'accuracy'")["p_equivalent"].isna().all()
