"""MLflow as a mirror of the records: while stages run."""

import json
import multiprocessing
import socket
import sqlite3
import subprocess
import sys
import time

import pandas as pd
import pytest

from nested_reft.records import mlflow_mirror
from nested_reft.records.files import read_json, read_rows, read_versioned_json
from nested_reft.records.mlflow_mirror import open_store, open_study, shared_store_problem, store_problem
from nested_reft.records.stage_record import StageRecord
from tests import conftest
from tests.records.conftest import EXPECTED, STEPS, history, record_in, run_stage


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


def test_a_resumed_stage_continues_its_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = record_in(tmp_path, "run", uri)
    for step in range(1, 11):
        first.log(step, {"reward": step / STEPS})
    first.trackers[0].try_to_send()  # and now the process dies; its last checkpoint is of step 8

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


def test_sqlite_on_a_network_file_system_is_no_store_of_several_jobs(mirrored_study, monkeypatch, tmp_path):
    uri = mirrored_study[0].tracking_uri
    assert shared_store_problem(uri) is None
    monkeypatch.setattr(mlflow_mirror, "network_file_system", lambda path: "nfs4")
    problem = shared_store_problem(uri)
    assert problem is not None and f"{uri!r} is on nfs4, a network file system" in problem and "\n" not in problem
    assert "set tracking.uri to null and run `nested-reft track` after the study" in problem
    assert store_problem(uri) is None  # a single process may use it, as `nested-reft track` and `ui` do
    assert "Connection refused" in (shared_store_problem("http://127.0.0.1:9") or "")


def test_a_run_that_a_slow_server_created_twice_is_one_run_in_the_end(tmp_path, monkeypatch):
    """The client gives up waiting for the first run and asks for a second one; the server creates both."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    open_study(uri, "study")
    create_run = MlflowClient.create_run

    def create_and_time_out(client, *arguments, **options):
        monkeypatch.setattr(MlflowClient, "create_run", create_twice)
        raise TimeoutError("API request timed out")

    def create_twice(client, *arguments, **options):
        create_run(client, *arguments, **options)  # that of the first request
        return create_run(client, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_run", create_and_time_out)
    first = record_in(tmp_path, "run", uri)
    first.trackers[0].try_to_send()
    for step in range(1, 9):
        first.log(step, {"reward": step / STEPS})
    first.trackers[0].try_to_send()  # and now the process dies; its last checkpoint is of step 8
    client, experiment = open_store(uri, "study")
    assert len(client.search_runs([experiment], "tags.stage = 'train'")) == 2

    second = record_in(tmp_path, "run", uri)
    second.resume_at(8)
    for step in range(9, STEPS + 1):
        second.log(step, {"reward": step / STEPS})
    second.finish({"mean_reward": 1.0})
    (run,) = client.search_runs([experiment], "tags.stage = 'train'")
    assert history(uri)["run"]["reward"] == EXPECTED and run.info.status == "FINISHED"


@pytest.mark.slow
def test_eight_jobs_at_once_lose_nothing_to_a_server_that_restarts(tmp_path, monkeypatch):
    """The jobs write to a real server, which ends when each has logged half its steps, and starts again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    database = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-m", "nested_reft", "server", "--store", database, "--port", str(port)]

    def start() -> subprocess.Popen[str]:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert f"  export MLFLOW_TRACKING_URI={uri}\n" in iter(server.stdout.readline, "")
        return server

    server = start()
    try:
        open_study(uri, "study")
        monkeypatch.setattr(mlflow_mirror, "SECONDS_BETWEEN_SENDS", 0.05)
        monkeypatch.setattr(mlflow_mirror, "SECONDS_AT_THE_END", 300.0)  # a busy machine starts the server slowly
        context = multiprocessing.get_context("fork")  # the children keep the patches
        halfway = context.Barrier(9, timeout=120)
        jobs = [context.Process(target=run_stage, args=(tmp_path, f"run{i}", uri, halfway)) for i in range(8)]
        for one in jobs:
            one.start()
        halfway.wait()
        server.terminate()
        server.wait()
        halfway.wait()  # all jobs log into a server that is down
        server = start()
        for one in jobs:
            one.join()
        found = history(uri)
        assert sorted(found) == [f"run{i}" for i in range(8)]
        for run in found.values():
            assert run["reward"] == EXPECTED and run["status"] == "FINISHED"
        client, experiment = open_store(uri, "study")
        assert len(client.search_runs([experiment])) == 9  # and that of the study
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_a_store_that_is_locked_and_then_removed_is_complete_after_track(tmp_path, monkeypatch):
    """Another process holds the SQLite file for longer than SQLite waits, and the file is deleted before the end."""
    monkeypatch.setattr(mlflow_mirror, "SECONDS_BETWEEN_SENDS", 0.01)
    monkeypatch.setattr(mlflow_mirror, "SECONDS_AT_THE_END", 1.0)
    database, results = tmp_path / "mlflow.db", tmp_path / "results"
    uri = f"sqlite:///{database}"
    open_study(uri, "study")
    run_stage(results, "before", uri)
    record = record_in(results, "run", uri)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for step in range(1, STEPS // 2):
        record.log(step, {"reward": step / STEPS, "loss": 0.5})
    assert record.trackers[0].waiting  # the store has refused the rows, which the mirror keeps
    other.execute("ROLLBACK")
    other.close()
    database.unlink()
    for step in range(STEPS // 2, STEPS + 1):
        record.log(step, {"reward": step / STEPS, "loss": 0.5})
    record.finish({"mean_reward": 1.0})
    assert [row["step"] for row in read_rows(results / "run/metrics.jsonl")] == list(range(1, STEPS + 1))

    for _ in range(2):  # a second time adds nothing
        tracked = conftest.run("nested-reft", "track", str(results), "--uri", uri, cwd=tmp_path)
        assert tracked.stdout == f"2 of 2 runs are in {uri}\n", tracked.stderr
        renewed = f"sqlite:///{tmp_path}/./mlflow.db"  # this process still has the removed file open under its address
        client, experiment = open_store(renewed, "study")
        found = history(renewed)
        assert sorted(found) == ["before", "run"]
        assert len(client.search_runs([experiment])) == 3  # and that of the study
        assert all(one["reward"] == EXPECTED and one["status"] == "FINISHED" for one in found.values())


def test_a_finished_run_has_a_name_a_description_and_its_result(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_stage(tmp_path, "run", uri)
    client, experiment = open_store(uri, "study")
    (run,) = client.search_runs([experiment], "tags.stage = 'train'")
    assert run.info.run_name == "train s0 | run"
    assert run.data.metrics["result/mean_reward"] == 1.0
    note = run.data.tags["mlflow.note.content"]
    assert "`training.learning_rate`: 0.0001" in note and "`mean_reward`: 1" in note
    assert f"Files: `{tmp_path}/run`" in note


def test_an_evaluation_shows_sampled_completions(tmp_path):
    uri = f"sqlite:///{tmp_path}/results/mlflow.db"
    record = StageRecord(tmp_path / "run", "evaluate", {"product": "pretrained", "model": "m"}, {}, {}, uri, "study")
    columns = {
        name: [f"{name} {i}" for i in range(200)] for name in ("benchmark", "problem", "completion", "extracted")
    }
    rows = pd.DataFrame(columns).assign(answer=[["1", "2"]] * 200, correct=False)
    rows.to_parquet(tmp_path / "run/records.parquet")
    record.finish({"eval/overall/pass_at_1": 0.123456})
    client, experiment = open_store(uri, "study")
    (run,) = client.search_runs([experiment], "tags.stage = 'evaluate'")
    assert run.data.metrics == {"eval/overall/pass_at_1": 0.123}
    assert run.info.artifact_uri == f"mlflow-artifacts:/study/{run.info.run_id}/artifacts"
    table = read_json(tmp_path / f"results/mlartifacts/study/{run.info.run_id}/artifacts/completions.json")
    assert table["columns"] == mlflow_mirror.COMPLETION_COLUMNS
    assert len(table["data"]) == 50
    assert table["data"][-1] == ["benchmark 199", "problem 199", "completion 199", "1 or 2", "extracted 199", False]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "completions.json", "type": "table"}]
