"""The record of a stage, and its mirror in MLflow."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from nested_reft import tracking
from nested_reft.tracking import StageRecord, checksum, open_store, read_json, read_rows, rebuild

STEPS = 30


def record_in(folder: Path, name: str, uri: str | None, settings: dict | None = None) -> StageRecord:
    settings = settings or {"training": {"learning_rate": 1e-4}}
    return StageRecord(folder / name, "train", {"model": name, "seed": 0}, settings, {}, uri, "study")


def work(folder: Path, name: str, uri: str) -> None:
    """One cell: some steps, then the end."""
    record = record_in(folder, name, uri)
    for step in range(1, STEPS + 1):
        record.log(step, {"reward": step / STEPS, "loss": 0.5})
    record.finish({"mean_reward": 1.0})


def history(uri: str) -> dict[str, dict]:
    """Return model -> tags, params and reward curve of every run in the store."""
    client, experiment = open_store(uri, "study")
    return {
        run.data.tags["model"]: {
            "tags": run.data.tags,
            "params": run.data.params,
            "status": run.info.status,
            "reward": [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "reward")],
        }
        for run in client.search_runs([experiment])
    }


EXPECTED = [(step, step / STEPS) for step in range(1, STEPS + 1)]


def test_four_cells_at_once_lose_no_run_and_no_metric(tmp_path, monkeypatch):
    """On a fresh store, created once before; each process sends often, so that they do collide."""
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_SENDS", 0.01)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    open_store(uri, "study")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(tmp_path, f"cell{i}", uri)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = history(uri)
    assert sorted(found) == ["cell0", "cell1", "cell2", "cell3"]
    for run in found.values():
        assert run["reward"] == EXPECTED
        assert run["status"] == "FINISHED"
        assert run["params"] == {"training.learning_rate": "0.0001"}
        assert run["tags"]["stage"] == "train" and run["tags"]["study"] == "study" and run["tags"]["git_commit"]


def test_the_store_can_be_rebuilt_from_the_files_and_rebuilding_twice_changes_nothing(tmp_path):
    work(tmp_path / "results", "cell", None)
    assert not (tmp_path / "mlflow.db").exists()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert rebuild(tmp_path / "results", uri) == (1, 1)
    once = history(uri)
    assert once["cell"]["reward"] == EXPECTED
    assert rebuild(tmp_path / "results", uri) == (1, 1)
    assert history(uri) == once


def test_a_resumed_stage_continues_its_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = record_in(tmp_path, "cell", uri)
    for step in range(1, 11):
        first.log(step, {"reward": step / STEPS})
    first.mirror.attempt()  # and now the process dies; its last checkpoint is of step 8

    second = record_in(tmp_path, "cell", uri)
    second.resume_at(8)
    assert second.run["attempts"] == 2
    for step in range(9, STEPS + 1):
        second.log(step, {"reward": step / STEPS})
    second.finish({"mean_reward": 1.0})
    assert [row["step"] for row in read_rows(tmp_path / "cell/metrics.jsonl")] == list(range(1, STEPS + 1))
    (run,) = history(uri).values()
    assert sorted(set(run["reward"])) == EXPECTED
    assert not (tmp_path / "cell/checkpoints").exists()


def test_a_half_written_row_is_left_out_at_resume(tmp_path):
    record_in(tmp_path, "cell", None).log(1, {"reward": 0.0})
    with (tmp_path / "cell/checkpoints/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')  # the machine went down here
    again = record_in(tmp_path, "cell", None)
    again.resume_at(2)
    assert [row["step"] for row in again.rows] == [1]


def test_a_checkpoint_without_its_settings_is_not_trusted(tmp_path):
    record_in(tmp_path, "cell", None).log(1, {"reward": 0.0})
    (tmp_path / "cell/checkpoints/started.json").unlink()
    again = record_in(tmp_path, "cell", None)
    again.resume_at(1)
    assert again.rows == []


def test_checkpoints_of_other_settings_are_dropped(tmp_path):
    record_in(tmp_path, "cell", None).log(1, {"reward": 0.0})
    (tmp_path / "cell/checkpoints/checkpoint-1").mkdir()
    again = record_in(tmp_path, "cell", None)
    again.resume_at(1)
    assert len(again.rows) == 1 and (tmp_path / "cell/checkpoints/checkpoint-1").exists()
    other = record_in(tmp_path, "cell", None, {"training": {"learning_rate": 2e-4}})
    other.resume_at(1)
    assert other.rows == [] and not (tmp_path / "cell/checkpoints/checkpoint-1").exists()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/no/such.db", "nonsense://x"])
def test_work_never_fails_because_mlflow_does(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_AT_THE_END", 1.0)
    started = time.monotonic()
    work(tmp_path, "cell", uri)
    assert time.monotonic() - started < 45  # nor does it wait for it
    assert read_json(tmp_path / "cell/metrics.json") == {"mean_reward": 1.0}
    assert len(read_rows(tmp_path / "cell/metrics.jsonl")) == STEPS


def test_checksum_sees_names_and_content(tmp_path):
    (tmp_path / "a").write_text("x")
    before = checksum(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert checksum(tmp_path) != before
    (tmp_path / "b").write_text("y")
    (tmp_path / "b").rename(tmp_path / "a")
    assert checksum(tmp_path) != before


def test_run_json_says_what_was_run_on_what(tmp_path):
    work(tmp_path, "cell", None)
    run = read_json(tmp_path / "cell/run.json")
    assert run["settings"] == {"training": {"learning_rate": 1e-4}}
    assert run["provenance"]["packages"]["trl"].startswith("1.16.")
    assert run["provenance"]["git_commit"]
    assert json.dumps(run).count("secret") == 0
