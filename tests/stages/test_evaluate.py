"""Per-problem records, their metrics, going on after an interruption, and grading again without a model."""

import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.errors import PreemptedError
from nested_reft.records.files import read_json, write_json, write_rows, write_versioned_json
from nested_reft.records.stage_record import StageRecord
from nested_reft.report.sources import problem_scores
from nested_reft.report.statistics import pass_at_k
from nested_reft.stages import evaluate as evaluation
from nested_reft.stages.evaluate import evaluate, evaluation_metrics
from tests.conftest import ROOT, TINY, run

PROBLEMS = [
    {"benchmark": "sums", "problem": "1 + 1?", "answer": ["2"]},
    {"benchmark": "sums", "problem": "2 + 2?", "answer": ["4", "four"]},
    {"benchmark": "sums", "problem": "3 + 3?", "answer": ["6"]},
    {"benchmark": "halves", "problem": "1 / 2?", "answer": ["1/2"]},
]


@pytest.fixture()
def evaluated(tmp_path, monkeypatch):
    """Return a function that evaluates canned completions and gives the folder."""

    def work(completions: list[str], **settings):
        write_rows(tmp_path / "benchmarks.jsonl", PROBLEMS)
        lengths = [len(text) for text in completions]
        monkeypatch.setattr(
            evaluation, "generate_completions", lambda *_: evaluation.Completions(completions, lengths, "engine")
        )
        record = StageRecord(tmp_path / "out", "evaluate", {"model": "m"}, {}, {}, None, "study")
        evaluate(Evaluation(**settings), Prompt(), "unused", tmp_path / "benchmarks.jsonl", record)
        return tmp_path / "out"

    return work


ANSWERS = ["\\boxed{2}", "it is \\boxed{four}", "no box", "\\boxed{0.5}"]


def test_the_clusters_of_a_benchmark_are_in_its_records_and_widen_its_intervals(evaluated, tmp_path, monkeypatch):
    plain = read_json(evaluated(ANSWERS) / "metrics.json")
    shutil.rmtree(tmp_path / "out")
    clusters = ["one", "one", "two", None]
    rows = [row | ({"cluster": name} if name else {}) for row, name in zip(PROBLEMS, clusters, strict=True)]
    monkeypatch.setattr("tests.stages.test_evaluate.PROBLEMS", rows)
    folder = evaluated(ANSWERS)
    in_records = problem_scores(pd.read_parquet(folder / "records.parquet"))["cluster"]
    assert in_records.tolist()[:3] == clusters[:3] and in_records.isna()[3]
    clustered = read_json(folder / "metrics.json")
    assert clustered["eval/sums/pass_at_1"] == plain["eval/sums/pass_at_1"]
    assert clustered["eval/sums/ci_low"] < plain["eval/sums/ci_low"]


def test_a_record_holds_all_that_its_grade_comes_from(evaluated):
    records = pd.read_parquet(evaluated(ANSWERS, max_new_tokens=10) / "records.parquet")
    assert list(records["problem_id"]) == [0, 1, 2, 0]
    assert list(records["completion"]) == ANSWERS
    assert list(records["extracted"].fillna("none")) == ["2", "four", "none", "0.5"]
    assert list(records["correct"]) == [True, True, False, True]
    assert list(records["truncated"]) == [False, True, False, True]
    assert all("boxed" in prompt and problem in prompt for prompt, problem in records[["prompt", "problem"]].values)


def test_metrics_by_hand(evaluated):
    metrics = read_json(evaluated(ANSWERS, max_new_tokens=10) / "metrics.json")
    assert metrics["eval/sums/pass_at_1"] == pytest.approx(2 / 3)
    assert metrics["eval/halves/pass_at_1"] == 1.0
    assert metrics["eval/overall/pass_at_1"] == pytest.approx((2 / 3 + 1) / 2)
    assert (metrics["eval/sums/n"], metrics["eval/overall/n"]) == (3, 4)
    assert metrics["eval/sums/truncated"] == pytest.approx(1 / 3)
    assert metrics["eval/sums/mean_length"] == pytest.approx((9 + 18 + 6) / 3)
    assert (metrics["eval/sums/ci_low"], metrics["eval/sums/ci_high"]) == pytest.approx((0.0943, 0.9916), abs=1e-4)
    assert metrics["eval/overall/ci_low"] < metrics["eval/overall/pass_at_1"] <= metrics["eval/overall/ci_high"]
    assert not [name for name in metrics if "pass_at_2" in name]


def test_several_samples_give_pass_at_k_for_powers_of_two(evaluated):
    right, wrong = "\\boxed{2}", "\\boxed{3}"
    completions = [right, wrong, right, wrong, wrong] + [wrong] * 10 + ["\\boxed{1/2}"] * 5
    folder = evaluated(completions, num_samples=5, temperature=0.6)
    records, metrics = pd.read_parquet(folder / "records.parquet"), read_json(folder / "metrics.json")
    assert list(records["sample"][:6]) == [0, 1, 2, 3, 4, 0]
    assert list(problem_scores(records)["num_correct"]) == [2, 0, 0, 5]
    assert metrics["eval/sums/pass_at_1"] == pytest.approx(2 / 15)
    assert metrics["eval/sums/pass_at_2"] == pytest.approx(pass_at_k([2, 0, 0], 5, 2).mean())
    assert metrics["eval/overall/pass_at_4"] == pytest.approx((1 / 3 + 1) / 2)
    assert "eval/sums/pass_at_8" not in metrics and "eval/sums/pass_at_5" not in metrics


def test_grading_again_changes_what_the_grader_says_otherwise_and_needs_no_torch(evaluated):
    folder = evaluated(ANSWERS, max_new_tokens=10)
    records, metrics = pd.read_parquet(folder / "records.parquet"), read_json(folder / "metrics.json")
    records.assign(correct=False).to_parquet(folder / "records.parquet", index=False)
    write_versioned_json(folder / "metrics.json", {"evaluation_runtime_s": metrics["evaluation_runtime_s"]})
    program = (
        "import sys; sys.argv = ['nested-reft', 'evaluate', '--regrade', '--out', sys.argv[1]]\n"
        "from nested_reft.cli import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("3 grades changed"), done.stdout + done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "records.parquet"), records)
    assert read_json(folder / "metrics.json") == metrics
    assert read_json(folder / "run.json")["regraded"]["git_commit"]


def test_an_evaluation_of_another_schema_version_is_not_graded_again(evaluated):
    folder = evaluated(ANSWERS)
    write_json(folder / "run.json", {"stage": "evaluate"})
    before = (folder / "records.parquet").read_bytes()
    finished = run("nested-reft", "evaluate", "--regrade", "--out", str(folder))
    assert finished.returncode == 2 and "run.json is missing" in finished.stderr
    assert (folder / "records.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--regrade"], "holds no finished evaluation"),
        (["--regrade", "--settings", "{}"], "leave the other options out"),
        ([], "needs --settings, --model and --benchmarks"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, words):
    finished = run("nested-reft", "evaluate", "--out", str(tmp_path), *arguments)
    assert finished.returncode == 2
    assert words in finished.stderr and finished.stderr.count("\n") == 1


def test_samples_of_the_embedded_model_follow_their_seed(tmp_path):
    settings = Evaluation(num_samples=3, temperature=1.0, max_new_tokens=6, dtype="float32", batch_size=4)
    prompts = ["Anna has 3 apples and buys 4. How many apples does she have?"] * 6
    once = evaluation.generate_completions(str(TINY), prompts, settings)
    assert once == evaluation.generate_completions(str(TINY), prompts, settings)
    assert len(set(once[0])) > 1
    other = settings.model_copy(update={"seed": 1})
    assert once != evaluation.generate_completions(str(TINY), prompts, other)


def test_metrics_do_not_depend_on_the_order_of_records(evaluated):
    records = pd.read_parquet(evaluated(ANSWERS) / "records.parquet")
    assert evaluation_metrics(records)["eval/sums/ci_low"] == evaluation_metrics(records[::-1])["eval/sums/ci_low"]


def test_an_evaluation_logs_how_far_it_is_now_and_then_and_at_its_end(monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = iter([0.0, 4.0, 20.0, 21.0, 22.0])
    monkeypatch.setattr(evaluation.time, "monotonic", lambda: next(clock))
    finished = evaluation.CompletionLogger(8)
    for num_finished in (1, 3, 0, 4):
        finished.count(num_finished)
    assert [record.getMessage() for record in caplog.records] == ["completion 4/8: about 20 s left", "completion 8/8"]


@pytest.fixture()
def in_batches(tmp_path, monkeypatch):
    """Return a function that evaluates the embedded model in batches of two, and a list of the sampled batches.

    A function in `before` is called before the batch with the index of its first completion is sampled.
    """
    write_rows(tmp_path / "benchmarks.jsonl", PROBLEMS)
    monkeypatch.setattr(evaluation, "FILLINGS_PER_BATCH", 1)
    opened, sampled = evaluation.open_sampler, []

    def work(name, sampler="engine", before=None):
        def opened_and_counted(*arguments):
            tokenizer, complete, kind = opened(*arguments)

            def counted(batch):
                if before and batch.start in before:
                    before[batch.start]()
                sampled.append(batch.start)
                return complete(batch)

            return tokenizer, counted, kind

        monkeypatch.setattr(evaluation, "open_sampler", opened_and_counted)
        settings = {"num_samples": 2, "temperature": 1.0, "max_new_tokens": 6, "dtype": "float32", "batch_size": 2}
        record = StageRecord(tmp_path / name, "evaluate", {"model": "m"}, {}, {}, None, "study")
        evaluate(Evaluation(**settings, sampler=sampler), Prompt(), str(TINY), tmp_path / "benchmarks.jsonl", record)
        return tmp_path / name

    return work, sampled


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("sampler", ["engine", "generate"])
def test_an_interrupted_evaluation_goes_on_after_its_last_finished_batch(sampler, in_batches, monkeypatch):
    evaluate_batches, sampled = in_batches
    whole = evaluate_batches("whole", sampler)
    assert sampled == [0, 2, 4, 6] and not (whole / "checkpoints").exists()
    assert read_json(whole / "run.json")["sampler"] == sampler
    sampled.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate_batches("killed", sampler, {4: interrupt})
    with pytest.raises(PreemptedError, match=r"SIGTERM ended the evaluation, .* are saved; it is resumable") as ended:
        evaluate_batches("killed", sampler, {6: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert ended.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(evaluation, "grade_records", interrupt)
        evaluate_batches("killed", sampler)
    killed = evaluate_batches("killed", sampler)
    assert sampled == [0, 2, 4, 6]
    assert read_json(killed / "run.json")["attempts"] == 4 and read_json(killed / "run.json")["sampler"] == sampler
    assert (killed / "records.parquet").read_bytes() == (whole / "records.parquet").read_bytes()
    metrics, others = (read_json(folder / "metrics.json") for folder in (whole, killed))
    assert metrics | {"evaluation_runtime_s": 0} == others | {"evaluation_runtime_s": 0}
    assert pd.read_parquet(whole / "records.parquet")["completion"].nunique() > 4


def test_batches_of_a_large_evaluation_have_about_the_same_size(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "open_sampler", lambda path, prompts, settings, batches: seen.extend(batches))
    with pytest.raises(TypeError):  # this stand-in for `open_sampler` returns no sampler
        evaluation.generate_completions("m", ["?"] * 1030, Evaluation(batch_size=32))
    assert seen == [range(0, 515), range(515, 1030)]
