"""SFT losses, token weights and sampled answers: collected from the files of a study."""

import pandas as pd

from nested_reft.off_policy_metrics import WEIGHT_BINS
from nested_reft.report.details import collect_details, read_details, shortened
from tests import synthetic


def test_weights_are_summed_over_the_steps_of_a_run(made_up):
    weights = read_details(made_up / "report").token_weights
    practical = weights[(weights["mitigation"] == "practical") & (weights["skip_ratio"] == 0.15)]
    run = practical[(practical["dataset"] == "algebra") & (practical["seed"] == 0)]
    assert list(run["weight"].round(6)) == [round(center, 6) for center in WEIGHT_BINS]
    assert dict(zip(run["weight"], run["tokens"], strict=True))[1.0] == run["tokens"].sum() == 40 * 1000


def test_answers_are_those_of_three_models_to_the_same_problems(made_up):
    answers = read_details(made_up / "report").sampled_answers
    assert len(answers) == 21 and set(answers["benchmark"]) == set(synthetic.SIZES)
    assert answers.groupby("dataset")["problem_id"].nunique().min() == 7
    for name in ("sft", "baseline", "instance"):
        says_right = answers[name] == [f"x={x}. \\boxed{{{x}}}" for x in answers["answer"]]
        assert (says_right == answers[f"{name}_correct"]).all()


def test_the_losses_of_every_sft_model_are_collected(made_up):
    losses = read_details(made_up / "report").sft_steps
    assert losses.groupby(["model", "dataset", "seed"]).size().tolist() == [30] * 6


def test_a_report_without_these_files_has_empty_tables(tmp_path):
    assert all(table.empty for table in read_details(tmp_path))
    nothing = collect_details(synthetic.study(models=1), tmp_path, [])
    assert all(table.empty and isinstance(table, pd.DataFrame) for table in nothing)


def test_a_long_completion_keeps_its_end():
    assert shortened("a\n b") == "a b"
    assert shortened("x" * 300 + "7").endswith("x7") and len(shortened("x" * 300)) == 202
