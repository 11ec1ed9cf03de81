"""The commands for the MLflow store."""

import yaml

from nested_reft.cli.store import store_of
from tests.conftest import ROOT, run


def test_a_store_that_cannot_be_opened_ends_the_command_with_one_sentence(tmp_path):
    out = tmp_path / "tracking.json"
    ended = run("nested-reft", "tracking-store", "--uri", "htp://x", "--study", "s", "--out", str(out))
    assert ended.returncode == 2 and not out.exists()
    assert (
        ended.stderr.startswith("Error: the MLflow store 'htp://x' cannot be opened") and ended.stderr.count("\n") == 1
    )


def test_the_ui_uses_the_store_of_the_study(tmp_path, monkeypatch):
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config | {"tracking": {"uri": "sqlite:///there.db"}}))
    assert store_of(path) == "sqlite:///there.db"
    assert store_of(None) == "sqlite:///results/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert store_of(path) == "sqlite:///elsewhere.db"


def test_a_study_without_mlflow_has_no_ui(tmp_path):
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config | {"tracking": {"uri": None}}))
    ended = run("nested-reft", "ui", str(path))
    assert ended.returncode == 2 and f"tracking.uri is null in {path}" in ended.stderr
