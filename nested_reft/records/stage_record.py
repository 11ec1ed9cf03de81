"""The record of a stage: settings, metrics per step and totals as files, mirrored in MLflow."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nested_reft.records.files import (
    checksum,
    discard,
    read_json,
    read_rows,
    write_json,
    write_rows,
    write_versioned_json,
)
from nested_reft.records.mlflow_mirror import MLflowMirror, final_row
from nested_reft.records.provenance import provenance


class StageRecord:
    """The folder of one stage product, and its mirror in MLflow."""

    def __init__(
        self,
        out: Path,
        stage: str,
        run: Mapping[str, Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path],
        tracking_uri: str | None,
        study: str,
    ) -> None:
        """Open the record, or continue the one that an interrupted attempt with these settings left.

        Args:
            out: the folder of the product.
            stage: `sft`, `train`, `evaluate` or `analyse`.
            run: where in the grid: model, dataset, ...
            settings: everything the stage was told.
            inputs: name -> file or folder that the stage reads; checksummed into `run.json`.
            tracking_uri: the MLflow store, or None for none.
            study: the MLflow experiment.
        """
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.rows: list[dict[str, Any]] = []
        digests = {name: checksum(path) for name, path in inputs.items()}
        fingerprint = json.dumps([settings, digests], sort_keys=True)
        started = self.checkpoints / "started.json"
        if not started.exists() or read_json(started)["fingerprint"] != fingerprint:
            discard(self.checkpoints)  # checkpoints of other settings are of no use
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not started.exists():
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            write_json(started, {"fingerprint": fingerprint, "started": now, "attempts": 0})
        beginning = read_json(started)
        write_json(started, beginning | {"attempts": beginning["attempts"] + 1})
        self.run = {
            "uid": f"{out}@{beginning['started']}",
            "study": study,
            "stage": stage,
            "run": dict(run),
            "settings": dict(settings),
            "inputs": {name: {"path": str(path), "sha256": digests[name]} for name, path in inputs.items()},
            "provenance": provenance(),
            "started": beginning["started"],
            "attempts": beginning["attempts"] + 1,
        }
        self.mirror = MLflowMirror(self.run, tracking_uri) if tracking_uri else None

    def resume_at(self, step: int) -> None:
        """Forget the rows after `step`: they will be written again."""
        path = self.checkpoints / "metrics.jsonl"
        if path.exists():
            self.rows = [row for row in read_rows(path, torn_end=True) if row["step"] <= step]
            write_rows(path, self.rows)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the row of a step."""
        row = {"step": step, "time": time.time(), **metrics}
        self.rows.append(row)
        with (self.checkpoints / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.mirror:
            self.mirror.send([row])

    def finish(self, metrics: Mapping[str, float], **facts: Any) -> None:
        """Write the final files, send what MLflow has not got yet, and drop the checkpoints.

        Args:
            metrics: the result of the stage.
            facts: more to note in `run.json`.
        """
        self.run |= facts | {"finished": datetime.now(UTC).isoformat(timespec="microseconds")}
        if self.rows:
            write_rows(self.out / "metrics.jsonl", self.rows)
        write_versioned_json(self.out / "metrics.json", metrics)
        write_versioned_json(self.out / "run.json", self.run)
        if self.mirror:
            self.mirror.finish(final_row(self.run, metrics, len(self.rows)))
        discard(self.checkpoints)
