"""A made-up folder of a smoke study, for tests of what is read from it."""

import fcntl
import json
import os
from contextlib import contextmanager

import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.records.lock import study_lock
from nested_reft.study.jobs import Folders, job_paths
from nested_reft.study.status import read_status
from tests.conftest import ROOT

SETTINGS = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
SMOKE = parse_settings(Study, SETTINGS)
CELL = "model~tiny-28/dataset~mixed"
TRAIN = f"train/{CELL}/skip_ratio~0.15/border~1/mitigation~retrace/seed~0"
NOW = 1_800_000_000.0
STEP = "2026-11-27 06:59:25 INFO step 12/40: reward 0.438, KL 0.03, acceptance 0.98, 0.93 s/step, about 26 s left\n"


class Tree:
    """The files of a smoke study in a folder."""

    def __init__(self, directory):
        self.directory = directory
        self.folders = Folders.of(directory, "smoke")

    def log(self, path, text, at=NOW):
        file = self.folders.logs / f"{path}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, (at, at))

    def finish(self, path, seconds=30.0, at=NOW, **metrics):
        folder, table = self.folders.results / path, self.folders.times / f"{path}.tsv"
        for parent in (folder, table.parent):
            parent.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text("{}")
        metrics = {"eval/overall/pass_at_1": 0.9125, "speed_up/4_skipped": 1.14} | metrics
        (folder / "metrics.json").write_text(json.dumps(metrics))
        rows = [{"step": step, "loss": 1 / step, "reward": step / 100} for step in range(1, 41)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        table.write_text(f"s\th:m:s\n{seconds}\t0:00:30\n")
        os.utime(table, (at, at))
        self.log(path, STEP, at)

    def begin(self, path, log=STEP, at=NOW):
        """Write what a job writes until it has made some steps."""
        folder = self.folders.results / path / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"step": step, "reward": 0.4 + step % 2 / 10, "perf/total_tok_s": 200.0} for step in range(1, 13)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 13, "rew')
        (folder.parent / ".lock").write_text("process 1 on here")
        os.utime(folder.parent / ".lock", (at, at))
        self.log(path, log, at)

    @contextmanager
    def locked(self, file, at=NOW):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lock:
            os.utime(file, (at, at))
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def runs(self, since=NOW):
        return self.locked(study_lock(self.directory, "smoke"), since)

    def status(self, now=NOW):
        return read_status(self.directory, "smoke", job_paths(SMOKE), now)
