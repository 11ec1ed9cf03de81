"""MLflow as a mirror of the records: while stages run, and from their files."""

import multiprocessing
import shutil
import time

import pytest

from nested_reft.errors import UserError
from nested_reft.records import mlflow_mirror
from nested_reft.records.files import read_json, read_rows, read_versioned_json, write_json
from nested_reft.records.mlflow_mirror import mirror_report, open_store, open_study, rebuild_store, store_problem
from nested_reft.records.mlflow_views import delta_columns
from tests.records.conftest import STEPS, history, record_in, run_stage

EXPECTED = [(step, step / STEPS) for step in range(1, STEPS + 1)]


def test_four_runs_at_once_lose_no_run_and_no_metric(tmp_path, monkeypatch):
    """On a fresh store, created once before; each process sends often, so that they do collide."""
    monkeypatch.setattr(mlflow_mirror, "SECONDS_BETWEEN_SENDS", 0.01)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    open_study(uri, "study")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=run_stage, args=(tmp_path, f"run{i}", uri)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = history(uri)
    assert sorted(found) == ["run0", "run1", "run2", "run3"]
    for run in found.values():
        assert run["reward"] == EXPECTED
        assert run["status"] == "FINISHED"
        assert run["params"] == {"training.learning_rate": "0.0001"}
        assert run["tags"]["stage"] == "train" and run["tags"]["study"] == "study" and run["tags"]["git_commit"]


def test_the_store_can_be_rebuilt_from_the_files_and_rebuilding_twice_changes_nothing(tmp_path):
    run_stage(tmp_path / "results", "run", None)
    assert not (tmp_path / "mlflow.db").exists()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert rebuild_store(tmp_path / "results", tmp_path / "reports", uri) == (1, 1)
    once = history(uri)
    assert once["run"]["reward"] == EXPECTED
    assert rebuild_store(tmp_path / "results", tmp_path / "reports", uri) == (1, 1)
    assert history(uri) == once


def test_the_schema_version_is_in_the_files_and_not_among_the_metrics(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_stage(tmp_path / "results", "run", uri)
    rebuild_store(tmp_path / "results", tmp_path / "reports", uri)
    assert all(read_json(tmp_path / f"results/run/{name}.json")["schema_version"] == 1 for name in ("run", "metrics"))
    client, experiment = open_store(uri, "study")
    (run,) = client.search_runs([experiment], "tags.stage = 'train'")
    assert set(run.data.metrics) == {"reward", "loss", "mean_reward"}


def test_a_record_of_another_version_is_refused_before_anything_is_sent(tmp_path):
    run_stage(tmp_path / "results", "run", None)
    run_stage(tmp_path / "results", "other", None)
    path = tmp_path / "results/other/metrics.json"
    write_json(path, {"mean_reward": 1.0})
    with pytest.raises(UserError, match=f"schema_version of {path} is missing"):
        rebuild_store(tmp_path / "results", tmp_path / "reports", f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_resumed_stage_continues_its_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = record_in(tmp_path, "run", uri)
    for step in range(1, 11):
        first.log(step, {"reward": step / STEPS})
    first.mirror.try_to_send()  # and now the process dies; its last checkpoint is of step 8

    second = record_in(tmp_path, "run", uri)
    second.resume_at(8)
    assert second.content["attempts"] == 2
    for step in range(9, STEPS + 1):
        second.log(step, {"reward": step / STEPS})
    second.finish({"mean_reward": 1.0})
    assert [row["step"] for row in read_rows(tmp_path / "run/metrics.jsonl")] == list(range(1, STEPS + 1))
    (run,) = history(uri).values()
    assert sorted(set(run["reward"])) == EXPECTED
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/no/such.db", "nonsense://x"])
def test_work_never_fails_because_mlflow_does(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_mirror, "SECONDS_AT_THE_END", 1.0)
    started = time.monotonic()
    run_stage(tmp_path, "run", uri)
    assert time.monotonic() - started < 45  # nor does it wait for it
    assert read_versioned_json(tmp_path / "run/metrics.json") == {"mean_reward": 1.0}
    assert len(read_rows(tmp_path / "run/metrics.jsonl")) == STEPS


@pytest.mark.parametrize(
    ("uri", "reason"),
    {
        "garbage": "MLflow does not know this kind of address",
        "foo://": "MLflow does not know this kind of address",
        "htp://x": "MLflow does not know this kind of address",
        "./mlruns": "MLflow does not know this kind of address",
        "http://127.0.0.1:9": "Connection refused",
        "http://127.0.0.1:port": "Invalid url",
        "postgresql://me:hush@127.0.0.1/x": "No module named 'psycopg2'",
        "sqlite:///{folder}/text": "file is not a database",
        "sqlite:///{folder}/text/mlflow.db": "text is not a folder that can be written to",
    }.items(),
)
def test_a_store_that_cannot_be_opened_is_found_in_seconds(uri, reason, tmp_path):
    (tmp_path / "text").write_text("no database" * 100)
    started = time.monotonic()
    problem = store_problem(uri.format(folder=tmp_path))
    assert time.monotonic() - started < 15
    assert problem is not None and reason in problem and "\n" not in problem and len(problem) < 450
    assert "tracking.uri" in problem and "hush" not in problem


def test_a_store_that_exists_or_can_be_created_is_no_problem(mirrored_study, tmp_path):
    assert store_problem(mirrored_study[0].tracking_uri) is None
    assert store_problem(f"sqlite:///{tmp_path}/new/mlflow.db") is None
    assert not (tmp_path / "new").exists()


def test_runs_can_be_sorted_by_their_delta(mirrored_study):
    client, experiment, report = mirrored_study
    rows = client.search_runs([experiment], "tags.stage = 'train'", order_by=["metrics.`delta/accuracy` ASC"])
    worst = rows[0].data
    assert (worst.tags["mitigation"], worst.tags["skip_ratio"]) == ("practical", "0.15")  # as it was made
    assert worst.tags["verdict"] == "resolved"
    with_delta = [row.data.metrics["delta/accuracy"] for row in rows if "delta/accuracy" in row.data.metrics]
    assert len(with_delta) == 18 and with_delta == sorted(with_delta)
    assert [row.data.tags["verdict"] for row in rows].count("baseline") == 2
    of_worst = delta_columns(report)["small-28", "one-step", 0.15, 1, "practical"]
    assert worst.metrics["delta/accuracy"] == float(of_worst["delta/accuracy"]) < 0
    assert (
        worst.metrics["delta/accuracy_ci_low"]
        < worst.metrics["delta/accuracy"]
        < worst.metrics["delta/accuracy_ci_high"]
    )
    assert worst.metrics["delta/token_speed_tok_s_relative"] > 0
    assert 0 < worst.metrics["eval/overall/pass_at_1"] < 1


def test_the_parent_run_holds_tables_figures_and_findings(mirrored_study):
    client, experiment, report = mirrored_study
    (parent,) = client.search_runs([experiment], "tags.stage = 'study'")
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 20 and parent.info.status == "FINISHED"
    names = {
        file.path for folder in ("tables", "figures") for file in client.list_artifacts(parent.info.run_id, folder)
    }
    assert {"tables/table2.csv", "tables/deltas.md", "figures/heat_map.svg", "figures/reward.png"} <= names
    assert parent.data.tags["mlflow.note.content"] == (report / "findings.rst").read_text()


def test_a_second_report_replaces_what_the_first_one_said(mirrored_study, tmp_path):
    client, experiment, report = mirrored_study
    changed = shutil.copytree(report, tmp_path / "report")
    deltas = (changed / "deltas.csv").read_text().replace(",resolved", ",not resolved")
    (changed / "deltas.csv").write_text(deltas)
    mirror_report(changed, report.parent.parent / "results", "synthetic", client.tracking_uri)
    assert not client.search_runs([experiment], "tags.verdict = 'resolved'")
    assert len(client.search_runs([experiment], "tags.stage = 'study'")) == 1
    mirror_report(report, report.parent.parent / "results", "synthetic", client.tracking_uri)
    assert client.search_runs([experiment], "tags.verdict = 'resolved'")


def test_a_report_never_fails_because_mlflow_does(mirrored_study, caplog):
    mirror_report(mirrored_study[2], mirrored_study[2], "synthetic", "sqlite:////proc/no/such.db")
    assert "MLflow did not accept the report" in caplog.text
