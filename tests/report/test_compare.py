"""The comparison of two studies or two runs, on made-up scores and reports."""

import shutil

import numpy as np
import pandas as pd
import pytest

from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_json
from nested_reft.report.compare import (
    OVERALL,
    PRODUCT,
    Side,
    check_same_problems,
    compare,
    comparison_text,
    conclusion,
    different_settings,
    read_report,
)
from nested_reft.report.statistics import mcnemar_test


def scores(correct: list[int], benchmark: str = "algebra", seed: int | None = None) -> pd.DataFrame:
    """Return the scores of one run on one benchmark, one sample per problem."""
    rows = pd.DataFrame({"num_correct": correct, "samples": 1, "benchmark": benchmark})
    problems = [f"Problem {index} of {benchmark}" for index in rows.index]
    return rows.assign(problem_id=rows.index, problem=problems, seed=seed, **dict.fromkeys(PRODUCT))


A = scores([1] * 60 + [0] * 40)
B = scores([1] * 55 + [0] * 5 + [1] * 20 + [0] * 20)  # loses 5 problems of A and gains 20


def test_the_difference_is_paired_by_problem():
    (row,) = compare(A, B, 0.95, 0.01).to_dict("records")
    assert (row["n"], row["accuracy_of_A"], row["accuracy_of_B"]) == (100, 0.6, 0.75)
    assert row["delta"] == pytest.approx(0.15)
    assert row["p"] == pytest.approx(mcnemar_test(20, 5), abs=0.003)
    half = 1.96 * np.sqrt((0.25 - 0.15**2) / 100)  # 25 of 100 differences are -1 or 1
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.15 - half, 0.15 + half), abs=0.01)


def test_benchmarks_have_equal_weight_in_the_mean():
    a = pd.concat([A, scores([0] * 10, "tiny")])
    b = pd.concat([B, scores([1] * 10, "tiny")])
    table = compare(a, b, 0.95, 0.01).set_index("benchmark")
    assert list(table.index) == ["algebra", "tiny", OVERALL]
    assert table.loc[OVERALL, "delta"] == pytest.approx((0.15 + 1.0) / 2)
    assert table.loc[OVERALL, "n"] == 110


def test_the_seeds_that_both_sides_have_are_paired():
    a = pd.concat([scores([1, 0, 0, 0], seed=0), scores([1, 1, 0, 0], seed=1), scores([1, 1, 1, 1], seed=5)])
    b = pd.concat([scores([1, 1, 1, 0], seed=0), scores([1, 1, 1, 0], seed=1)])
    (row,) = compare(a, b, 0.95, 0.01).to_dict("records")
    assert (row["seeds"], row["accuracy_of_A"], row["accuracy_of_B"]) == (2, 0.375, 0.75)


C = scores([1] * 4000 + [0] * 4000)


@pytest.mark.parametrize(
    ("a", "b", "verdict", "words"),
    [
        (A, B, "better", "interval [+6.0, +25.0]) says that B is better, because p = 0.0042 is below 0.05."),
        (B, A, "worse", "interval [-24.0, -6.0]) says that B is worse, because p = 0.0042 is below 0.05."),
        (
            A,
            A,
            "inconclusive",
            "is inconclusive, because neither no change (p = 1) nor a change of 1 points or more (p",
        ),
        (C, C, "equivalent", "says that B is equivalent, because a change of 1 points or more has p = "),
    ],
)
def test_the_conclusion_is_one_sentence(a, b, verdict, words):
    table = compare(a, b, 0.95, 0.01)
    assert list(table["verdict"]) == [verdict]
    sentence = conclusion(table, 0.95, 1.0)
    assert sentence.startswith("The accuracy is ") and words in sentence and sentence.count(". ") == 1


def test_only_settings_that_differ_are_listed():
    a, b = Side("a", A, {"x": 1, "y": 2}), Side("b", B, {"x": 1, "y": 3, "z": None})
    assert different_settings(a, b) == ["y: 2 | 3"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (scores([1], "one-step"), "a was evaluated on algebra, but b on one-step; compare evaluations on the same"),
        (scores([1, 0]), "the benchmark algebra has 100 problems in a, but 2 in b"),
        (B.assign(problem="x"), "problem 0 of the benchmark algebra is 'Problem 0 of algebra' in a, but 'x' in b"),
    ],
)
def test_other_problems_are_refused(other, words):
    with pytest.raises(UserError, match=words):
        check_same_problems(Side("a", A, {}), Side("b", other, {}))


def test_two_studies_are_compared_product_by_product(made_up, tmp_path):
    report = shutil.copytree(made_up / "report", tmp_path / "other")
    path = report / "problem_scores.parquet"
    changed = pd.read_parquet(path)
    of_retrace = (changed["mitigation"] == "retrace") & (changed["skip_ratio"] == 0.15)
    changed.loc[of_retrace, "num_correct"] = 1
    changed.to_parquet(path)
    settings = read_json(report / "config.json")
    settings["training"]["learning_rate"] = 0.5
    write_json(report / "config.json", settings)
    text = comparison_text(read_report(made_up / "report"), read_report(report), 0.95, 1.0)
    assert "  training.learning_rate: 1e-06 | 0.5\n" in text
    lines = [line for line in text.splitlines() if line.startswith("| train ")]
    assert len(lines) == 3 * 10  # datasets x (nine instances and the baseline)
    assert all(("+0.0" in line.split("|")[-5]) != ("retrace" in line and " 15% " in line) for line in lines)
    # with the pretrained model and a warm-up per dataset
    assert "B is worse in 0, better in 1, equivalent in 0 of 34, with p below 0.05" in text


def test_an_unfinished_study_gives_no_verdict(made_up, tmp_path):
    report = shutil.copytree(made_up / "report", tmp_path / "half")
    missing = "seed == 1 and mitigation == 'retrace'"
    results, scores = pd.read_csv(report / "results.csv"), pd.read_parquet(report / "problem_scores.parquet")
    results.drop(results.query(missing).index).to_csv(report / "results.csv", index=False)
    scores.drop(scores.query(missing).index).to_parquet(report / "problem_scores.parquet")
    *_, row, _, sentence = comparison_text(
        read_report(made_up / "report"), read_report(report), 0.95, 1.0
    ).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")][-3:] == ["", "", "waiting"]
    assert sentence == (
        f"{report} is not finished (51 of 60 runs are finished), so that the verdicts wait. Compare again when all "
        "runs are finished."
    )


def test_a_table_shows_accuracies_in_percent_and_deltas_in_points():
    *_, heading, _, row, _, sentence = comparison_text(Side("a", A, {}), Side("b", B, {}), 0.95, 1.0).splitlines()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, row)]
    assert dict(zip(*shown, strict=True)) == {
        "benchmark": "algebra",
        "n": "100",
        "accuracy of A, %": "60.0",
        "accuracy of B, %": "75.0",
        "delta, points": "+15.0",
        "interval, points": "[+6.0, +25.0]",
        "p": "0.004",
        "p, equivalent": "1.000",
        "verdict": "better",
    }
    assert sentence.startswith("The accuracy is 60.0% in A")


def test_studies_with_other_benchmarks_are_refused(made_up, tmp_path):
    report = shutil.copytree(made_up / "report", tmp_path / "other")
    settings = read_json(report / "config.json")
    settings["benchmarks"]["algebra"]["path"] = "mine.jsonl"
    write_json(report / "config.json", settings)
    with pytest.raises(UserError, match=r"the benchmark algebra is .*embedded/algebra.* but .*mine\.jsonl"):
        check_same_problems(read_report(made_up / "report"), read_report(report))
