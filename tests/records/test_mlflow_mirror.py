"""The record of a stage, and its mirror in MLflow."""

import base64
import json
import multiprocessing
import re
import shutil
import time
import zlib
from pathlib import Path

import pytest

from nested_reft.errors import UserError
from nested_reft.records import mlflow_mirror as tracking
from nested_reft.records import mlflow_views as browsing
from nested_reft.records.files import read_json, read_rows, read_versioned_json, write_json
from nested_reft.records.mlflow_mirror import mirror_report, open_store, open_study, rebuild
from nested_reft.records.mlflow_views import deltas_of
from nested_reft.records.stage_record import StageRecord
from nested_reft.report import build
from tests import synthetic
from tests.conftest import ROOT

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
        for run in client.search_runs([experiment], "tags.stage != 'study'")
    }


EXPECTED = [(step, step / STEPS) for step in range(1, STEPS + 1)]


def test_four_cells_at_once_lose_no_run_and_no_metric(tmp_path, monkeypatch):
    """On a fresh store, created once before; each process sends often, so that they do collide."""
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_SENDS", 0.01)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    open_study(uri, "study")
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
    assert rebuild(tmp_path / "results", tmp_path / "reports", uri) == (1, 1)
    once = history(uri)
    assert once["cell"]["reward"] == EXPECTED
    assert rebuild(tmp_path / "results", tmp_path / "reports", uri) == (1, 1)
    assert history(uri) == once


def test_the_schema_version_is_in_the_files_and_not_among_the_metrics(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    work(tmp_path / "results", "cell", uri)
    rebuild(tmp_path / "results", tmp_path / "reports", uri)
    assert all(read_json(tmp_path / f"results/cell/{name}.json")["schema_version"] == 1 for name in ("run", "metrics"))
    client, experiment = open_store(uri, "study")
    (run,) = client.search_runs([experiment], "tags.stage = 'train'")
    assert set(run.data.metrics) == {"reward", "loss", "mean_reward"}


def test_a_record_of_another_version_is_refused_before_anything_is_sent(tmp_path):
    work(tmp_path / "results", "cell", None)
    work(tmp_path / "results", "other", None)
    path = tmp_path / "results/other/metrics.json"
    write_json(path, {"mean_reward": 1.0})
    with pytest.raises(UserError, match=f"schema_version of {path} is missing"):
        rebuild(tmp_path / "results", tmp_path / "reports", f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


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
    assert read_versioned_json(tmp_path / "cell/metrics.json") == {"mean_reward": 1.0}
    assert len(read_rows(tmp_path / "cell/metrics.jsonl")) == STEPS


def test_run_json_says_what_was_run_on_what(tmp_path):
    work(tmp_path, "cell", None)
    run = read_json(tmp_path / "cell/run.json")
    assert run["settings"] == {"training": {"learning_rate": 1e-4}}
    assert run["provenance"]["packages"]["trl"].startswith("1.16.")
    assert run["provenance"]["git_commit"]
    assert json.dumps(run).count("secret") == 0


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    """A made-up study of 20 trainings in a store: the client, its experiment, and the report."""
    folder = tmp_path_factory.mktemp("browsed")
    config = synthetic.study(seeds=2, models=1, datasets=1)
    synthetic.write(config, folder / "results/synthetic", steps=3)
    build.report(config, folder / "results/synthetic", folder / "reports/synthetic")
    uri = f"sqlite:///{folder}/mlflow.db"
    assert rebuild(folder / "results", folder / "reports", uri) == (20, 20)
    client, experiment = open_store(uri, "synthetic")
    return client, experiment, folder / "reports/synthetic"


def test_runs_can_be_sorted_by_their_delta(browsed):
    client, experiment, report = browsed
    rows = client.search_runs([experiment], "tags.stage = 'train'", order_by=["metrics.`delta/accuracy` ASC"])
    worst = rows[0].data
    assert (worst.tags["mitigation"], worst.tags["skip_ratio"]) == ("practical", "0.15")  # as it was made
    assert worst.tags["verdict"] == "resolved"
    with_delta = [row.data.metrics["delta/accuracy"] for row in rows if "delta/accuracy" in row.data.metrics]
    assert len(with_delta) == 18 and with_delta == sorted(with_delta)
    assert [row.data.tags["verdict"] for row in rows].count("baseline") == 2
    of_worst = deltas_of(report)["small-28", "one-step", 0.15, "practical"]
    assert worst.metrics["delta/accuracy"] == float(of_worst["delta/accuracy"]) < 0
    assert (
        worst.metrics["delta/accuracy_ci_low"]
        < worst.metrics["delta/accuracy"]
        < worst.metrics["delta/accuracy_ci_high"]
    )
    assert worst.metrics["delta/token_speed_tok_s_relative"] > 0
    assert 0 < worst.metrics["eval/overall/pass_at_1"] < 1


def test_the_parent_run_holds_tables_figures_and_findings(browsed):
    client, experiment, report = browsed
    (parent,) = client.search_runs([experiment], "tags.stage = 'study'")
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 20 and parent.info.status == "FINISHED"
    names = {
        file.path for folder in ("tables", "figures") for file in client.list_artifacts(parent.info.run_id, folder)
    }
    assert {"tables/table2.csv", "tables/deltas.md", "figures/heat_map.svg", "figures/reward.png"} <= names
    assert parent.data.tags["mlflow.note.content"] == (report / "findings.rst").read_text()


def test_the_filters_that_the_store_and_the_docs_propose_find_what_they_say(browsed):
    client, experiment, _ = browsed
    filters = re.findall(r"`(tags\..+?)`[,:;\n]", browsing.HOW_TO_BROWSE)
    found = {text: len(client.search_runs([experiment], text)) for text in filters}
    positive = sum(float(of["delta/accuracy"]) > 0 for of in deltas_of(browsed[2]).values()) * 2
    resolved = sum(of["verdict"] == "resolved" for of in deltas_of(browsed[2]).values()) * 2
    assert list(found.values()) == [1, 20, 6, resolved, positive, 0]
    assert resolved > 0
    docs = (ROOT / "docs/how-to/mlflow.md").read_text()
    assert all(text in docs for text in filters)
    assert client.get_experiment(experiment).tags["mlflow.note.content"] == browsing.HOW_TO_BROWSE


def test_saved_views_ask_for_what_is_there(browsed):
    """A mistyped column or filter would show an empty table, and nobody would know why."""
    client, experiment, _ = browsed
    there = {"attributes.start_time"}
    for run in client.search_runs([experiment]):
        there |= {f"tags.`{name}`" for name in run.data.tags} | {f"metrics.`{name}`" for name in run.data.metrics}
    for name, (text, order, columns) in browsing.VIEWS.items():
        found = client.search_runs([experiment], text, order_by=[f"{order} DESC"])
        if "evaluate" not in text:  # the made-up study has no runs of this stage
            assert found, name
            assert {order, *columns} <= there, name
    saved = client.get_experiment(experiment).tags["mlflow.sharedViewState.trainings-by-delta"]
    state = json.loads(saved)["state"].removeprefix("deflate;")
    assert json.loads(zlib.decompress(base64.b64decode(state)))["searchFilter"] == "tags.stage = 'train'"


def test_a_second_report_replaces_what_the_first_one_said(browsed, tmp_path):
    client, experiment, report = browsed
    changed = shutil.copytree(report, tmp_path / "report")
    deltas = (changed / "deltas.csv").read_text().replace(",resolved", ",not resolved")
    (changed / "deltas.csv").write_text(deltas)
    mirror_report(changed, report.parent.parent / "results", "synthetic", client.tracking_uri)
    assert not client.search_runs([experiment], "tags.verdict = 'resolved'")
    assert len(client.search_runs([experiment], "tags.stage = 'study'")) == 1
    mirror_report(report, report.parent.parent / "results", "synthetic", client.tracking_uri)
    assert client.search_runs([experiment], "tags.verdict = 'resolved'")


def test_a_report_never_fails_because_mlflow_does(browsed, caplog):
    mirror_report(browsed[2], browsed[2], "synthetic", "sqlite:////proc/no/such.db")
    assert "MLflow did not take the report" in caplog.text
