"""The UI of a store: what it refuses, and where it opens."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from nested_reft.errors import UserError
from nested_reft.records.mlflow_ui import check_port, check_store, study_addresses


def test_a_store_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"mlflow.db does not exist; run a study first, or rebuild the store"):
        check_store(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_port_that_is_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use; .* `make ui PORT={port + 1}`"):
            check_port(port)
    check_port(port)


def test_the_address_of_a_study_opens_its_trainings_sorted_by_delta(mirrored_study):
    client, experiment, _ = mirrored_study
    addresses = study_addresses(client.tracking_uri, "http://127.0.0.1:5001")
    start = f"http://127.0.0.1:5001/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert addresses == {"synthetic": f"{start}&viewStateShareKey=trainings-by-delta"}
    assert "mlflow.sharedViewState.trainings-by-delta" in client.get_experiment(experiment).tags


@pytest.mark.slow
def test_the_server_shows_artifacts_after_the_folder_was_moved(mirrored_study, tmp_path):
    client, experiment, report = mirrored_study
    (parent,) = client.search_runs([experiment], "tags.stage = 'study'")
    (report.parent.parent).rename(tmp_path / "moved")
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "nested_reft", "ui", "--port", str(port)]
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/moved/mlflow.db"}
        ui = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
        address = next(line for line in ui.stdout if line.startswith("Runs of synthetic: "))
        assert f"http://127.0.0.1:{port}/#/experiments/{experiment}/" in address
        query = f"run_uuid={parent.info.run_id}&path=tables/deltas.md"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/get-artifact?{query}") as answer:
            assert answer.read() == (tmp_path / "moved/reports/synthetic/deltas.md").read_bytes()
        ui.send_signal(signal.SIGTERM)
        ui.wait(30)
    finally:
        (tmp_path / "moved").rename(report.parent.parent)
