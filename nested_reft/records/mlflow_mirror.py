"""MLflow as a mirror of the records: a stage sends its metrics as it runs, or `nested-reft track` sends its files."""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nested_reft.config.parse import flatten
from nested_reft.records.mlflow_views import curve_names, description, experiment_tags, result_names, run_name
from nested_reft.records.mounts import network_file_system
from nested_reft.startup import quick_imports

log = logging.getLogger(__name__)

# Rows are sent to MLflow at most this often, because each send is a transaction of the SQLite store.
SECONDS_BETWEEN_SENDS = 10.0
# The time for which the end of a stage repeats failed sends, for example while the database is locked.
SECONDS_AT_THE_END = 60.0
# Columns and number of the completions that an evaluation shows in MLflow; records.parquet has all of them.
COMPLETION_COLUMNS = ["benchmark", "problem", "completion", "answer", "extracted", "correct"]
NUM_COMPLETIONS = 50
# MLflow's limits on one request, and on the length of a parameter.
PARAMS_PER_BATCH, METRICS_PER_BATCH, PARAM_LENGTH = 100, 1000, 6000
# The kinds of addresses that MLflow opens and that several jobs can share.
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def mlflow_timestamp(moment: str) -> int:
    """Return an ISO 8601 moment as MLflow stores it: milliseconds since 1970."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def final_row(record: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the result of a stage as one more row. MLflow shows a metric of step 0 as a number and not as a curve.

    The row has the time at which the stage ended, so that MLflow ignores it when it is sent a second time.
    """
    return {"step": 0, "time": mlflow_timestamp(record["finished"]) / 1000, **result_names(metrics)}


def sampled_completions(records: Path) -> str:
    """Return some rows of records.parquet, at equal distances, as a table in the JSON format of MLflow."""
    import numpy as np
    import pandas as pd

    rows = pd.read_parquet(records, columns=COMPLETION_COLUMNS)
    chosen = np.linspace(0, len(rows) - 1, min(NUM_COMPLETIONS, len(rows))).astype(int)
    table = rows.iloc[chosen].assign(answer=rows["answer"].map(lambda answers: " or ".join(map(str, answers))))
    return table.to_json(orient="split", index=False)


def without_secrets(text: str) -> str:
    """Return the text without the user and the password in any address."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def reason(error: Exception) -> str:
    """Return why MLflow failed, as a part of a sentence and without secrets.

    The message of a failed request is long and names the failure of the operating system, or of SQLite, in its middle.
    """
    failures = re.findall(r"(?:\[Errno -?\d+\]|\(sqlite3\.\w+\)) ([\w ]+)", str(error))
    first_sentence = re.split(r"\.?\s*(?:\. |\n|$)", str(error).strip())[0]
    return without_secrets(failures[-1] if failures else first_sentence)


def connect(uri: str) -> Any:
    """Return a client of the MLflow store, which gives up on a server that does not answer after a few seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # By default MLflow waits for minutes for a server that does not answer; the mirror tries again later anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the callers report a failure in one sentence
    with quick_imports():
        from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def store_problem(uri: str) -> str | None:
    """Return why the MLflow store cannot be used, as one sentence with the remedy, or None if it can be used.

    A SQLite file that does not exist yet can be used if it can be created. Nothing is created here.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    database = Path(uri.removeprefix("sqlite:///")).absolute()
    try:
        if scheme not in SCHEMES:
            why = "MLflow does not know this kind of address"
        elif uri.startswith("sqlite:///") and not database.exists():
            parent = next(folder for folder in database.parents if folder.exists())
            if parent.is_dir() and os.access(parent, os.W_OK):
                return None
            why = f"{parent} is not a folder that can be written to"
        else:
            connect(uri).search_experiments(max_results=1)
            return None
    except Exception as error:
        why = reason(error)
    return without_secrets(
        f"the MLflow store {uri!r} cannot be opened ({why}); start its server, or set tracking.uri to "
        "sqlite:///FILE, http://HOST:PORT or null (the variable MLFLOW_TRACKING_URI takes precedence)"
    )


def shared_store_problem(uri: str) -> str | None:
    """Return why several jobs cannot share the MLflow store, as one sentence with the remedy, or None if they can.

    A SQLite file on a network file system is refused even if all jobs run on one machine: the locks that SQLite needs
    do not work reliably there, and metrics would be lost without a message.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and (system := network_file_system(database)):
        return (
            f"the MLflow store {uri!r} is on {system}, a network file system, where SQLite loses what several jobs "
            "write at once; set tracking.uri to null and run `nested-reft track` after the study, or set it to "
            "sqlite:///FILE on a local disk, or to the http://HOST:PORT of an MLflow server"
        )
    return store_problem(uri)


def tracking_uri(configured: str | None) -> str | None:
    """Return the address of the store: that of the variable MLFLOW_TRACKING_URI, else the configured one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or configured


def open_store(uri: str, study: str) -> tuple[Any, str]:
    """Return the MLflow client and the id of the study's experiment, created if it does not exist.

    The migrations of a SQLite store collide when several processes create it at once. The workflow therefore calls
    this function once, before any job sends metrics.
    """
    from mlflow.exceptions import MlflowException

    artifacts = None
    if folder := local_artifacts(uri):
        folder.parent.mkdir(parents=True, exist_ok=True)
        artifacts = f"mlflow-artifacts:/{study}"
    client = connect(uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is not None:
        return client, experiment.experiment_id
    try:
        return client, client.create_experiment(study, artifact_location=artifacts, tags=experiment_tags())
    except MlflowException:  # another process has created it since
        return client, client.get_experiment_by_name(study).experiment_id


def local_artifacts(uri: str) -> Path | None:
    """Return the folder beside a SQLite store that has the artifacts of its runs, or None for another kind of store.

    The store itself holds addresses relative to this folder (`mlflow-artifacts:/...`), so that both can be moved.
    """
    database = uri.removeprefix("sqlite:///")
    return None if database == uri else Path(database).absolute().parent / "mlartifacts"


def save_artifact(client: Any, run: str, file: Path, folder: str | None = None) -> None:
    """Copy a file to the artifacts of an MLflow run."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    address = client.get_run(run).info.artifact_uri
    if local := local_artifacts(client.tracking_uri):
        address = address.replace("mlflow-artifacts:", local.as_uri(), 1)
    get_artifact_repository(address, tracking_uri=client.tracking_uri).log_artifact(str(file), folder)


def find_runs(client: Any, experiment: str, uid: str) -> list[Any]:
    """Return the MLflow runs of this `uid`.

    They are several if a server has created a run after the client gave up waiting for it and asked again.
    """
    return client.search_runs([experiment], f"tags.uid = '{uid}'")


def find_run(client: Any, experiment: str, uid: str) -> Any:
    """Return the MLflow run of this `uid`, that with most metrics if there are several, or None."""
    return max(find_runs(client, experiment, uid), key=lambda run: len(run.data.metrics), default=None)


def open_study(uri: str, study: str) -> tuple[Any, str, str]:
    """Return the client, the id of the study's experiment and of its parent run, created if they do not exist.

    The MLflow runs of all stages are children of the parent run, which holds the tables and figures of the report.
    """
    client, experiment = open_store(uri, study)
    parent = find_run(client, experiment, f"study/{study}")
    if parent is None:
        tags = {"uid": f"study/{study}", "study": study, "stage": "study"}
        parent = client.create_run(experiment, tags=tags, run_name=f"study {study}")
    return client, experiment, parent.info.run_id


class MLflowMirror:
    """One MLflow run that follows the record of a stage.

    No method raises when MLflow fails: rows that could not be sent are kept, and sent with later ones.

    Args:
        record: the content of the stage's run.json, perhaps without the entries that the end of the stage adds.
        uri: the address of the MLflow store.
    """

    def __init__(self, record: Mapping[str, Any], uri: str) -> None:
        self.record = record
        self.uri = uri
        self.client: Any = None  # an MlflowClient as soon as the MLflow run is open
        self.experiment = self.run_id = ""
        self.waiting: list[dict[str, Any]] = []
        self.next_attempt = 0.0
        self.pause = SECONDS_BETWEEN_SENDS
        self.try_to_send()

    def open_run(self) -> None:
        """Find the MLflow run of this record by its `uid`, so that a resumed stage continues it, or create it."""
        from mlflow.entities import Param

        client, self.experiment, parent = open_study(self.uri, self.record["study"])
        found = find_run(client, self.experiment, self.record["uid"])
        if found is not None:
            self.run_id = found.info.run_id
            client.update_run(self.run_id, status="RUNNING")  # the attempt before may have ended as KILLED or FAILED
        else:
            axes = self.record["run"]
            tags = {name: str(value) for name, value in axes.items()}
            tags |= {name: self.record[name] for name in ("study", "stage", "uid")}
            tags["git_commit"] = self.record["provenance"]["git_commit"]
            tags["mlflow.parentRunId"] = parent
            name = run_name(self.record["stage"], axes)
            started = mlflow_timestamp(self.record["started"])
            self.run_id = client.create_run(self.experiment, start_time=started, tags=tags, run_name=name).info.run_id
        params = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in flatten(self.record["settings"]).items()]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_BATCH])
        self.client = client

    def try_to_send(self) -> bool:
        """Try to send the waiting rows; return whether all are sent. Each consecutive failure doubles the pause."""
        try:
            from mlflow.entities import Metric

            if self.client is None:
                self.open_run()
            metrics = [
                Metric(name, float(value), int(row["time"] * 1000), row["step"])
                for row in self.waiting
                for name, value in curve_names(row).items()
                if name not in ("step", "time") and isinstance(value, int | float)
            ]
            for start in range(0, len(metrics), METRICS_PER_BATCH):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
            self.waiting.clear()
            self.pause = SECONDS_BETWEEN_SENDS
        except Exception as error:
            where = without_secrets(self.uri)
            log.warning(
                "MLflow at %s did not accept the metrics (%s); they are sent again later", where, reason(error)
            )
            self.pause *= 2
        self.next_attempt = time.monotonic() + self.pause
        return not self.waiting and self.client is not None

    def send(self, rows: list[dict[str, Any]]) -> None:
        """Send rows, or keep them for a later attempt."""
        self.waiting += rows
        if time.monotonic() > self.next_attempt:
            self.try_to_send()

    def try_to_close(self, metrics: Mapping[str, float], folder: Path) -> bool:
        """Try to describe the MLflow run and to mark it as finished; return whether that succeeded."""
        try:
            self.client.set_tag(self.run_id, "mlflow.note.content", description(self.record, metrics))
            if (folder / "records.parquet").exists():
                self.save_completions(folder / "records.parquet")
            for run in find_runs(self.client, self.experiment, self.record["uid"]):
                if run.info.run_id != self.run_id:
                    self.client.delete_run(run.info.run_id)
            self.client.set_terminated(self.run_id, "FINISHED", mlflow_timestamp(self.record["finished"]))
        except Exception as error:
            log.warning("MLflow did not close the run (%s); it is closed later", reason(error))
            return False
        return True

    def abandon(self, status: str) -> None:
        """Mark the MLflow run as KILLED or FAILED; nothing is repeated, because the process ends now."""
        if self.client is None or not self.try_to_send():
            return
        try:
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            log.warning("MLflow did not mark the run as %s (%s)", status, reason(error))

    def save_completions(self, records: Path) -> None:
        """Add a table of sampled completions to the artifacts of the MLflow run."""
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "completions.json"
            file.write_text(sampled_completions(records))
            save_artifact(self.client, self.run_id, file)
        tables = json.dumps([{"path": file.name, "type": "table"}])
        self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", tables)

    def finish(self, metrics: Mapping[str, float], folder: Path) -> bool:
        """Send the waiting rows and the result of the stage; return whether all is sent.

        Failed attempts, for example while the database is locked, are repeated for `SECONDS_AT_THE_END`.

        Args:
            metrics: the content of metrics.json.
            folder: the folder of the product.
        """
        self.waiting.append(final_row(self.record, metrics))
        deadline, pause = time.monotonic() + SECONDS_AT_THE_END, 0.25
        while not (self.try_to_send() and self.try_to_close(metrics, folder)):
            if time.monotonic() + pause > deadline:
                log.warning("MLflow lacks metrics of %s; `nested-reft track` sends them", self.record["uid"])
                return False
            time.sleep(pause)
            pause *= 2
        return True
