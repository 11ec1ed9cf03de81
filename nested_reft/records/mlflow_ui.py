"""MLflow's server of a store, on this machine, and the addresses at which its UI opens on the runs of a study."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from nested_reft.errors import UserError
from nested_reft.records.mlflow_mirror import connect, local_artifacts, store_problem
from nested_reft.records.mlflow_views import runs_address

SECONDS_TO_START = 120.0


def check_store(uri: str) -> None:
    """Refuse a store that does not exist or cannot be opened.

    Raises:
        UserError: the message says how to get a store.
    """
    if uri.startswith("sqlite:///") and not (database := Path(uri.removeprefix("sqlite:///"))).exists():
        raise UserError(
            f"MLflow store {database} does not exist; run a study first, or rebuild the store from the files of "
            f"the results by `nested-reft track --uri {uri}`"
        )
    if problem := store_problem(uri):
        raise UserError(problem)


def check_port(port: int) -> None:
    """Refuse a port on which another program listens.

    Raises:
        UserError: the message says how to choose another port.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(
                f"port {port} is in use; choose another one, as in `make ui PORT={port + 1}` or --port {port + 1}"
            )


def study_addresses(uri: str, server: str) -> dict[str, str]:
    """Return study -> address of its runs, the newest study first."""
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = client.search_runs(experiments, "tags.stage = 'study'", order_by=["attributes.start_time DESC"])
    return {run.data.tags["study"]: runs_address(server, run.info.experiment_id) for run in parents}


def serve(uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server of a store for programs on this machine, and wait until it answers.

    The server is one process with several threads, so that a SQLite store has a single writer.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn-opts", "--log-level warning"]
    command += ["--allowed-hosts", "localhost,localhost:*,127.0.0.1,127.0.0.1:*"]
    if artifacts := local_artifacts(uri):
        command += ["--artifacts-destination", str(artifacts)]
    # The server's job runner is for evaluations of GenAI traces, and starts seven more processes.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet |= {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(command, env=os.environ | quiet)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    deadline = time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return server
        except OSError:
            time.sleep(0.2)
    server.terminate()
    raise UserError(f"MLflow did not start on port {port}; its messages are above")
