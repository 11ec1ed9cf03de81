"""MLflow and finished studies: a store from their files, and the runs of a study with its report."""

import shutil

import pytest

from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_json
from nested_reft.records.mlflow_mirror import open_store
from nested_reft.records.mlflow_report import mirror_report, rebuild_store
from tests.records.conftest import EXPECTED, history, run_stage


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
    assert set(run.data.metrics) == {"Reward/reward", "loss", "result/mean_reward"}


def test_a_record_of_another_version_is_refused_before_anything_is_sent(tmp_path):
    run_stage(tmp_path / "results", "run", None)
    run_stage(tmp_path / "results", "other", None)
    path = tmp_path / "results/other/metrics.json"
    write_json(path, {"mean_reward": 1.0})
    with pytest.raises(UserError, match=f"schema_version of {path} is missing"):
        rebuild_store(tmp_path / "results", tmp_path / "reports", f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_runs_can_be_sorted_by_their_delta(mirrored_study):
    client, experiment, _ = mirrored_study
    rows = client.search_runs([experiment], "tags.stage = 'train'", order_by=["metrics.`result/delta` ASC"])
    worst = rows[0].data
    assert (worst.tags["mitigation"], worst.tags["skip_ratio"]) == ("practical", "0.15")  # as it was made
    assert worst.tags["verdict"] == "worse"
    with_delta = [row.data.metrics["result/delta"] for row in rows if "result/delta" in row.data.metrics]
    assert len(with_delta) == 18 and with_delta == sorted(with_delta)
    assert [row.data.tags["verdict"] for row in rows].count("baseline") == 2
    low, high = map(float, worst.tags["interval"].strip("[]").split(", "))
    assert low < worst.metrics["result/delta"] < high < 0
    assert worst.tags["delta_token_speed_tok_s"].startswith("+") and worst.tags["delta_token_speed_tok_s"].endswith(
        "%"
    )
    assert 0 < worst.metrics["result/accuracy"] < 1


def test_a_training_has_no_metrics_of_a_single_value_but_its_results(mirrored_study):
    client, experiment, _ = mirrored_study
    run = client.search_runs([experiment], "tags.stage = 'train'")[0]
    of_step_0 = {m for m in run.data.metrics if client.get_metric_history(run.info.run_id, m)[-1].step == 0}
    assert of_step_0 == {m for m in run.data.metrics if m.startswith("result/")}


def test_the_same_report_sent_twice_adds_no_value(mirrored_study):
    client, experiment, report = mirrored_study
    (run, *_) = client.search_runs([experiment], "metrics.`result/delta` > -1", max_results=1)
    mirror_report(report, report.parents[1] / "results", "synthetic", client.tracking_uri)
    for name in ("result/delta", "result/accuracy"):
        assert len(client.get_metric_history(run.info.run_id, name)) == 1


def test_the_parent_run_holds_tables_figures_and_findings(mirrored_study):
    client, experiment, report = mirrored_study
    (parent,) = client.search_runs([experiment], "tags.stage = 'study'")
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 20 and parent.info.status == "FINISHED"
    artifacts = report.parent.parent / f"mlartifacts/synthetic/{parent.info.run_id}/artifacts"
    names = {str(file.relative_to(artifacts)) for file in artifacts.rglob("*.*")}
    assert {"tables/table2.csv", "tables/deltas.md", "figures/heat_map.svg", "figures/reward.png"} <= names
    assert parent.data.tags["mlflow.note.content"] == (report / "findings.rst").read_text()


def test_a_second_report_replaces_what_the_first_one_said(mirrored_study, tmp_path):
    client, experiment, report = mirrored_study
    changed = shutil.copytree(report, tmp_path / "report")
    deltas = (changed / "deltas.csv").read_text().replace(",worse", ",inconclusive")
    (changed / "deltas.csv").write_text(deltas)
    mirror_report(changed, report.parent.parent / "results", "synthetic", client.tracking_uri)
    assert not client.search_runs([experiment], "tags.verdict = 'worse'")
    assert len(client.search_runs([experiment], "tags.stage = 'study'")) == 1
    mirror_report(report, report.parent.parent / "results", "synthetic", client.tracking_uri)
    assert client.search_runs([experiment], "tags.verdict = 'worse'")


def test_a_report_never_fails_because_mlflow_does(mirrored_study, caplog):
    mirror_report(mirrored_study[2], mirrored_study[2], "synthetic", "sqlite:////proc/no/such.db")
    assert "MLflow did not accept the report" in caplog.text
