"""MLflow and finished studies: a store is rebuilt from the files, and a report is added to the runs of its study."""

import logging
from pathlib import Path
from typing import Any

from nested_reft.records.files import read_rows, read_versioned_json
from nested_reft.records.mlflow_mirror import MLflowMirror, open_study, reason, save_artifact
from nested_reft.records.mlflow_views import delta_columns, instance_key, rounded

log = logging.getLogger(__name__)

# The folders of a report's files among the artifacts of the study's parent run; other files are in `sources`.
FOLDERS = {
    ".csv": "tables",
    ".html": "tables",
    ".md": "tables",
    ".tex": "tables",
    ".svg": "figures",
    ".png": "figures",
}


def rebuild_store(results: Path, reports: Path, uri: str) -> tuple[int, int]:
    """Send every finished record under `results`, and the reports, to the store.

    Sending a record twice changes nothing: MLflow runs are found by their `uid`, and MLflow ignores a metric that it
    already has.

    Returns:
        The number of records, and how many of them the store has accepted.

    Raises:
        UserError: if a record is in a layout that this code does not read; nothing is sent then.
    """
    folders = [path.parent for path in sorted(results.rglob("run.json"))]
    contents = [[read_versioned_json(folder / name) for name in ("run.json", "metrics.json")] for folder in folders]
    accepted, studies = 0, set()
    for folder, (record, metrics) in zip(folders, contents, strict=True):
        studies.add(record["study"])
        mirror = MLflowMirror(record, uri)
        steps = folder / "metrics.jsonl"
        mirror.waiting = read_rows(steps) if steps.exists() else []
        accepted += mirror.finish(metrics, folder)
    for study in sorted(studies):
        if (reports / study / "deltas.csv").exists():
            mirror_report(reports / study, results, study, uri)
    return len(folders), accepted


def mirror_report(report: Path, results: Path, study: str, uri: str | None) -> None:
    """Add a finished study's results to its MLflow runs; a failure of MLflow is logged and never raised.

    The study's parent run gets the tables, the figures and the text of the findings. Each training run gets, as
    columns to sort and filter by, the accuracy of its evaluation and the deltas of its instance over all seeds: the
    number `result/delta`, and as tags its interval, its p, its verdict and the relative deltas of speed.
    """
    if uri is None:
        return
    try:
        client, experiment, parent = open_study(uri, study)
        mirror_tables(client, parent, report)
        mirror_deltas(client, experiment, report, results)
    except Exception as error:
        log.warning("MLflow did not accept the report (%s); `nested-reft track` sends it", reason(error))


def mirror_tables(client: Any, parent: str, report: Path) -> None:
    """Add the files of a report to the study's parent run, and mark it as finished."""
    for file in sorted(report.iterdir()):
        save_artifact(client, parent, file, FOLDERS.get(file.suffix, "sources"))
    client.set_tag(parent, "mlflow.note.content", (report / "findings.rst").read_text())
    client.set_terminated(parent, "FINISHED")


def mirror_deltas(client: Any, experiment: str, report: Path, results: Path) -> None:
    """Add accuracies and deltas to the MLflow runs of the trainings whose records are under `results`."""
    from mlflow.entities import Metric, RunTag

    deltas = delta_columns(report)
    # The same report gives the same time, so that MLflow ignores what it has already; a later report takes precedence.
    analysed = int((report / "deltas.csv").stat().st_mtime * 1000)
    trainings = client.search_runs([experiment], "tags.stage = 'train'", max_results=50_000)
    run_ids = {training.data.tags["uid"]: training.info.run_id for training in trainings}
    for path in sorted(results.rglob("train/model~*/**/run.json")):
        record = read_versioned_json(path)
        if record["uid"] not in run_ids:  # of another study or stage, or never sent; `nested-reft track` sends it
            continue
        axes = record["run"]
        values: dict[str, Any] = {"verdict": "baseline" if float(axes["skip_ratio"]) == 0 else "no baseline"}
        values |= deltas.get(instance_key(axes), {})
        root = next(folder for folder in path.parents if folder.name == "train").parent
        evaluation = root / "evaluate" / path.parent.relative_to(root) / "metrics.json"
        if evaluation.exists():
            values["result/accuracy"] = rounded(read_versioned_json(evaluation)["eval/overall/pass_at_1"])
        metrics = [Metric(name, value, analysed, 0) for name, value in values.items() if isinstance(value, float)]
        tags = [RunTag(name, value) for name, value in values.items() if isinstance(value, str)]
        client.log_batch(run_ids[record["uid"]], metrics=metrics, tags=tags)
