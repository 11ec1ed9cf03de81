"""The commands for the MLflow store."""

import socket

import pytest
import yaml
from typer.testing import CliRunner

from nested_reft.cli import app, store
from nested_reft.cli.store import store_of
from nested_reft.errors import UserError
from nested_reft.records import mlflow_ui
from tests.conftest import ROOT, run


def test_a_store_that_cannot_be_opened_ends_the_command_with_one_sentence(tmp_path):
    out = tmp_path / "tracking.json"
    ended = run("nested-reft", "tracking-store", "--uri", "htp://x", "--study", "s", "--out", str(out))
    assert ended.returncode == 2 and not out.exists()
    assert (
        ended.stderr.startswith("Error: the MLflow store 'htp://x' cannot be opened") and ended.stderr.count("\n") == 1
    )


def test_a_server_that_is_down_ends_every_command_with_one_sentence(tmp_path, monkeypatch):
    address = "http://127.0.0.1:9"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    (tmp_path / "results").mkdir()
    for command in (["tracking-store", "--uri", address, "--study", "s", "--out", "t.json"], ["track"], ["ui"]):
        with pytest.raises(UserError) as refused:
            CliRunner().invoke(app, command, catch_exceptions=False)
        sentence = str(refused.value)
        assert f"the MLflow store {address!r} cannot be opened (Connection refused); start its server" in sentence
        assert "\n" not in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_the_store_to_fill_is_that_of_the_option_or_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    environment, option = (f"sqlite:///{tmp_path}/{name}.db" for name in ("environment", "option"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    for options, uri in (([], environment), (["--uri", option], option)):
        assert CliRunner().invoke(app, ["track", *options]).output == f"0 of 0 runs are in {uri}\n"


def test_a_server_needs_a_free_port_and_a_database(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(UserError, match=f"port {port} is in use"):
            start = ["server", "--port", port, "--store", f"sqlite:///{tmp_path}/m.db"]
            CliRunner().invoke(app, start, catch_exceptions=False)
    with pytest.raises(UserError, match="MLflow does not know this kind of address"):
        CliRunner().invoke(app, ["server", "--store", "htp://x"], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_the_ui_uses_the_store_of_the_study(tmp_path, monkeypatch):
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config | {"tracking": {"uri": "sqlite:///there.db"}}))
    assert store_of(path) == "sqlite:///there.db"
    assert store_of(None) == "sqlite:///results/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert store_of(path) == "sqlite:///elsewhere.db"


def test_the_study_of_the_config_comes_first_and_is_opened(monkeypatch):
    opened = []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")  # it shows its store already, so none is started
    monkeypatch.setattr(mlflow_ui, "check_store", lambda uri: None)
    monkeypatch.setattr(mlflow_ui, "study_addresses", lambda uri, server: {"new": "1", "smoke": "2", "old": "3"})
    monkeypatch.setattr(store.webbrowser, "open", opened.append)
    for config, first in (([str(ROOT / "config/smoke.yaml")], "smoke: 2"), ([], "new: 1")):
        shown = CliRunner().invoke(app, ["ui", *config, "--open"], catch_exceptions=False)
        assert shown.stdout.splitlines()[0] == f"Runs of {first}"
    assert opened == ["2", "1"]


def test_a_study_without_mlflow_has_no_ui(tmp_path):
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config | {"tracking": {"uri": None}}))
    ended = run("nested-reft", "ui", str(path))
    assert ended.returncode == 2 and f"tracking.uri is null in {path}" in ended.stderr
