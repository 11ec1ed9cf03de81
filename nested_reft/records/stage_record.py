"""The record of a stage: its settings, metrics per step and totals as files, followed by MLflow and other trackers."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from nested_reft.config.parse import flatten
from nested_reft.records.files import (
    check_outputs,
    checksum,
    discard,
    output_checksums,
    read_json,
    read_rows,
    write_json,
    write_rows,
    write_versioned_json,
)
from nested_reft.records.mlflow_mirror import MLflowMirror
from nested_reft.records.provenance import collect_provenance
from nested_reft.records.trackers import Tracker

log = logging.getLogger(__name__)


def differences(before: str, now: str) -> list[str]:
    """Return a sentence for each setting and input that differs between the fingerprints of two attempts."""
    (settings, digests), (new_settings, new_digests) = json.loads(before), json.loads(now)
    old, new = flatten(settings), flatten(new_settings)
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    names = sorted(digests.keys() | new_digests.keys())
    return changes + [f"the {name} has changed" for name in names if digests.get(name) != new_digests.get(name)]


class StageRecord:
    """The folder of one product of a stage, and the trackers that follow it.

    While the stage runs, everything is below `checkpoints`, apart from the completions of a training. `finish` writes
    metrics.jsonl, metrics.json and, last, run.json into the folder itself.

    Attributes:
        rows: the metrics of the steps so far.
        is_written: whether the files of the product are written by this process.
    """

    is_written = True

    def __init__(
        self,
        out: Path,
        stage: str,
        run: Mapping[str, Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path],
        tracking_uri: str | None,
        study: str,
        report_to: Sequence[str] = (),
    ) -> None:
        """Open a new record, or continue the record of an interrupted attempt with the same settings and inputs.

        Args:
            out: the folder of the product.
            stage: `measure_speed`, `sft`, `train` or `evaluate`.
            run: the product's place in the grid: model, dataset, ...
            settings: all settings of the stage.
            inputs: name -> file or folder that the stage reads; `run.json` gets its checksum.
            tracking_uri: the MLflow store, or None to run without MLflow.
            study: the name of the study, which is also the name of the MLflow experiment.
            report_to: names of other trackers, of `trackers.TRACKERS`.

        Raises:
            UserError: an input is damaged, so that it differs from what an earlier stage wrote.
        """
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.rows: list[dict[str, Any]] = []
        digests = {name: checksum(path) for name, path in inputs.items()}
        for name, path in inputs.items():
            check_outputs(path.parent, {path.name: digests[name]})
        fingerprint = json.dumps([settings, digests], sort_keys=True)
        started = self.checkpoints / "started.json"
        before = read_json(started)["fingerprint"] if started.exists() else None
        if before != fingerprint:
            if before:
                changes = "; ".join(differences(before, fingerprint))
                log.warning("%s does not continue its interrupted attempt, because %s; it starts anew", out, changes)
            discard(self.checkpoints)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not started.exists():
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            write_json(started, {"fingerprint": fingerprint, "started": now, "attempts": 0})
        attempt = read_json(started)
        attempt["attempts"] += 1
        write_json(started, attempt)
        self.content = {
            "uid": f"{out}@{attempt['started']}",
            "study": study,
            "stage": stage,
            "run": dict(run),
            "settings": dict(settings),
            "inputs": {name: {"path": str(path), "sha256": digests[name]} for name, path in inputs.items()},
            "provenance": collect_provenance(),
            "started": attempt["started"],
            "attempts": attempt["attempts"],
        }
        self.trackers: list[MLflowMirror | Tracker] = [Tracker(name, self.content, out) for name in report_to]
        if tracking_uri:
            self.trackers.append(MLflowMirror(self.content, tracking_uri))

    def resume_at(self, step: int) -> None:
        """Drop the rows after `step`, because the resumed stage writes them again."""
        path = self.checkpoints / "metrics.jsonl"
        if path.exists():
            self.rows = [row for row in read_rows(path, torn_end=True) if row["step"] <= step]
            write_rows(path, self.rows)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the row of a step; the trackers get its numbers."""
        row = {"step": step, "time": time.time(), **metrics}
        self.rows.append(row)
        with (self.checkpoints / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.send([row])

    def abandon(self, status: Literal["KILLED", "FAILED"]) -> None:
        """Close the runs of the trackers without a result; a later attempt continues them."""
        for tracker in self.trackers:
            tracker.abandon(status)

    def finish(self, metrics: Mapping[str, float], **facts: Any) -> None:
        """Write the final files, send the remaining rows to the trackers, and delete the checkpoints.

        Args:
            metrics: the result of the stage.
            facts: further entries of `run.json`.
        """
        self.content |= facts | {"finished": datetime.now(UTC).isoformat(timespec="microseconds")}
        if self.rows:
            write_rows(self.out / "metrics.jsonl", self.rows)
        write_versioned_json(self.out / "metrics.json", metrics)
        self.content["outputs"] = output_checksums(self.out)
        write_versioned_json(self.out / "run.json", self.content)
        for tracker in self.trackers:
            tracker.finish(metrics, self.out)
        discard(self.checkpoints)


class SilentRecord(StageRecord):
    """The record of a rank other than 0: it keeps the rows of the steps, and writes nothing.

    Args:
        out: the folder of the product, in which rank 0 writes.
    """

    is_written = False

    def __init__(self, out: Path) -> None:
        self.out, self.checkpoints, self.rows = out, out / "checkpoints", []

    def resume_at(self, step: int) -> None:
        """Leave the rows of an interrupted attempt to rank 0."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep the row of a step."""
        self.rows.append({"step": step, "time": time.time(), **metrics})

    def abandon(self, status: Literal["KILLED", "FAILED"]) -> None:
        """Leave the trackers to rank 0."""

    def finish(self, metrics: Mapping[str, float], **facts: Any) -> None:
        """Leave the final files to rank 0."""
