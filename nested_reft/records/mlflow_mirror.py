"""MLflow as a mirror of the records: sent while a stage runs, or afterwards from its files."""

import logging
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nested_reft.records.files import read_rows, read_versioned_json
from nested_reft.records.mlflow_views import deltas_of, experiment_tags

log = logging.getLogger(__name__)

# Rows are sent to MLflow at most this often: each send is a transaction of the SQLite store.
SECONDS_BETWEEN_SENDS = 10.0
# At the end of a stage a locked database gets this much patience.
SECONDS_AT_THE_END = 60.0
# Of a run of the grid, in the order in which its name has them.
AXES = ("product", "model", "dataset", "skip_ratio", "mitigation", "seed")


def milliseconds(moment: str) -> int:
    """Return MLflow's timestamp of an ISO 8601 moment."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def final_row(run: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> dict[str, Any]:
    """Return the result of a stage as one more row, dated with its end: sent twice, it is the same."""
    return {"step": step, "time": milliseconds(run["finished"]) / 1000, **metrics}


def without_secrets(text: str) -> str:
    """Return the text without the user and password of any address in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as MLflow parameters: `training.learning_rate` -> `1e-06`."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def open_store(uri: str, study: str) -> tuple[Any, str]:
    """Return the MLflow client and the id of the study's experiment, created if it does not exist.

    Creating a SQLite store is not safe when several processes do it at once (its migrations collide),
    so the workflow calls this once before anything is tracked.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's defaults wait minutes for a server that is not there; ours is a mirror that tries again anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    database = uri.removeprefix("sqlite:///")
    artifacts = None
    if database != uri:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
        artifacts = (Path(database).absolute().parent / "mlartifacts" / study).as_uri()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is not None:
        return client, experiment.experiment_id
    try:
        return client, client.create_experiment(study, artifact_location=artifacts, tags=experiment_tags())
    except MlflowException:  # another process was faster
        return client, client.get_experiment_by_name(study).experiment_id


def find_run(client: Any, experiment: str, uid: str) -> Any:
    """Return the run of this `uid`, or None."""
    found = client.search_runs([experiment], f"tags.uid = '{uid}'")
    return found[0] if found else None


def open_study(uri: str, study: str) -> tuple[Any, str, str]:
    """Return the client, the study's experiment and its parent run, created if they do not exist.

    All runs of stages are children of the parent run, which gets the tables and figures in the end.
    """
    client, experiment = open_store(uri, study)
    parent = find_run(client, experiment, f"study/{study}")
    if parent is None:
        tags = {"uid": f"study/{study}", "study": study, "stage": "study"}
        parent = client.create_run(experiment, tags=tags, run_name=f"study {study}")
    return client, experiment, parent.info.run_id


class MLflowMirror:
    """One MLflow run that follows a record. It never raises: what could not be sent is kept and sent later."""

    def __init__(self, run: Mapping[str, Any], uri: str) -> None:
        self.run = run
        self.uri = uri
        self.client: Any = None
        self.run_id = ""
        self.waiting: list[dict[str, Any]] = []
        self.next_attempt = 0.0
        self.pause = SECONDS_BETWEEN_SENDS
        self.attempt()

    def open_run(self) -> None:
        """Find the run of this record by its `uid`, so that a resumed stage continues it, or create it."""
        from mlflow.entities import Param

        client, experiment, parent = open_study(self.uri, self.run["study"])
        found = find_run(client, experiment, self.run["uid"])
        if found is not None:
            self.run_id = found.info.run_id
        else:
            tags = {name: str(value) for name, value in self.run["run"].items()}
            tags |= {name: self.run[name] for name in ("study", "stage", "uid")}
            tags["git_commit"] = self.run["provenance"]["git_commit"]
            tags["mlflow.parentRunId"] = parent
            axes = [str(self.run["run"][axis]) for axis in AXES if axis in self.run["run"]]
            name = " ".join([self.run["stage"], *axes])
            started = milliseconds(self.run["started"])
            self.run_id = client.create_run(experiment, start_time=started, tags=tags, run_name=name).info.run_id
        params = [Param(name, value[:6000]) for name, value in flatten(self.run["settings"]).items()]
        for start in range(0, len(params), 100):
            client.log_batch(self.run_id, params=params[start : start + 100])
        self.client = client

    def attempt(self) -> bool:
        """Try to send what waits; return whether nothing waits any more. Failures in a row are spaced further."""
        try:
            from mlflow.entities import Metric

            if self.client is None:
                self.open_run()
            metrics = [
                Metric(name, float(value), int(row["time"] * 1000), row["step"])
                for row in self.waiting
                for name, value in row.items()
                if name not in ("step", "time") and isinstance(value, int | float)
            ]
            for start in range(0, len(metrics), 1000):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
            self.waiting.clear()
            self.pause = SECONDS_BETWEEN_SENDS
        except Exception as error:
            log.warning("MLflow did not take the metrics, will try again: %s", without_secrets(str(error)))
            self.pause *= 2
        self.next_attempt = time.monotonic() + self.pause
        return not self.waiting and self.client is not None

    def send(self, rows: list[dict[str, Any]]) -> None:
        """Send rows, or keep them for a later attempt."""
        self.waiting += rows
        if time.monotonic() > self.next_attempt:
            self.attempt()

    def close(self) -> bool:
        """Try to mark the run as finished; return whether it is done."""
        try:
            self.client.set_terminated(self.run_id, "FINISHED", milliseconds(self.run["finished"]))
        except Exception as error:
            log.warning("MLflow did not close the run, will try again: %s", without_secrets(str(error)))
            return False
        return True

    def finish(self, row: dict[str, Any]) -> bool:
        """Send the rest and the final row, with patience for a locked database; return whether all is there."""
        self.waiting.append(row)
        deadline, pause = time.monotonic() + SECONDS_AT_THE_END, 0.25
        while not (self.attempt() and self.close()):
            if time.monotonic() + pause > deadline:
                log.warning("MLflow has not got everything of %s; `nested-reft track` sends it", self.run["uid"])
                return False
            time.sleep(pause)
            pause *= 2
        return True


def rebuild(results: Path, reports: Path, uri: str) -> tuple[int, int]:
    """Send every finished record under `results`, and the reports, to the store.

    Sending a record twice changes nothing: runs are found by their `uid`, and MLflow ignores a
    metric that it has already got.

    Returns:
        How many records there are, and how many of them the store took.

    Raises:
        UserError: if a record is in a layout that this code does not read; nothing is sent then.
    """
    folders = [path.parent for path in sorted(results.rglob("run.json"))]
    records = [[read_versioned_json(folder / name) for name in ("run.json", "metrics.json")] for folder in folders]
    taken, studies = 0, set()
    for folder, (run, metrics) in zip(folders, records, strict=True):
        studies.add(run["study"])
        mirror = MLflowMirror(run, uri)
        steps = folder / "metrics.jsonl"
        mirror.waiting = read_rows(steps) if steps.exists() else []
        taken += mirror.finish(final_row(run, metrics, len(mirror.waiting)))
    for study in sorted(studies):
        if (reports / study / "deltas.csv").exists():
            mirror_report(reports / study, results, study, uri)
    return len(records), taken


def mirror_report(report: Path, results: Path, study: str, uri: str | None) -> None:
    """Put a finished study's results where a browser of runs looks for them; never raises.

    The study's parent run gets the tables, the figures and the findings in words. Each training run gets
    the accuracies of its evaluation and the deltas of its instance, over all seeds, as columns to sort
    and filter by: `delta/accuracy` with its interval and p, the relative deltas of speed, and the tag `verdict`.
    """
    if uri is None:
        return
    try:
        from mlflow.entities import Metric, RunTag

        client, experiment, parent = open_study(uri, study)
        folders = {".csv": "tables", ".md": "tables", ".tex": "tables", ".svg": "figures", ".png": "figures"}
        for file in sorted(report.iterdir()):
            client.log_artifact(parent, str(file), folders.get(file.suffix, "sources"))
        client.set_tag(parent, "mlflow.note.content", (report / "findings.rst").read_text())
        client.set_terminated(parent, "FINISHED")

        deltas = deltas_of(report)
        trainings = client.search_runs([experiment], "tags.stage = 'train'", max_results=50_000)
        run_ids = {training.data.tags["uid"]: training.info.run_id for training in trainings}
        for path in sorted(results.rglob("train/model~*/**/run.json")):
            run = read_versioned_json(path)
            if run["uid"] not in run_ids:  # of another study or stage, or never sent; `nested-reft track` sends it
                continue
            axes = run["run"]
            values = dict(deltas.get((axes["model"], axes["dataset"], axes["skip_ratio"], axes["mitigation"]), {}))
            verdict = values.pop("verdict", "baseline" if axes["skip_ratio"] == 0 else "no baseline")
            root = next(folder for folder in path.parents if folder.name == "train").parent
            evaluation = root / "evaluate" / path.parent.relative_to(root) / "metrics.json"
            values |= read_versioned_json(evaluation) if evaluation.exists() else {}
            now = int(time.time() * 1000)
            metrics = [Metric(name, float(value), now, 0) for name, value in values.items() if value != ""]
            client.log_batch(run_ids[run["uid"]], metrics=metrics, tags=[RunTag("verdict", verdict)])
    except Exception as error:
        log.warning("MLflow did not take the report; run analyse again: %s", without_secrets(str(error)))
