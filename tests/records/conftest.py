"""Stages that are recorded, and a made-up study that is mirrored in MLflow."""

from pathlib import Path
from threading import Barrier

import pytest

from nested_reft.records.mlflow_mirror import open_store
from nested_reft.records.mlflow_report import rebuild_store
from nested_reft.records.stage_record import StageRecord
from nested_reft.report import build
from tests import synthetic

STEPS = 30
# The reward curve that `run_stage` records: (step, reward).
EXPECTED = [(step, step / STEPS) for step in range(1, STEPS + 1)]


def record_in(folder: Path, name: str, uri: str | None, settings: dict | None = None) -> StageRecord:
    """Open the record of a training into the folder of this name."""
    settings = settings or {"training": {"learning_rate": 1e-4}}
    return StageRecord(folder / name, "train", {"model": name, "seed": 0}, settings, {}, uri, "study")


def run_stage(folder: Path, name: str, uri: str | None, halfway: Barrier | None = None) -> None:
    """Record a stage: its steps, then its end. It waits twice for a barrier before the second half of its steps."""
    record = record_in(folder, name, uri)
    for step in range(1, STEPS + 1):
        if halfway and step == STEPS // 2:
            halfway.wait()
            halfway.wait()
        record.log(step, {"reward": step / STEPS, "loss": 0.5})
    record.finish({"mean_reward": 1.0})


def history(uri: str) -> dict[str, dict]:
    """Return model -> tags, params and reward curve of every run in the store."""
    client, experiment = open_store(uri, "study")
    return {
        run.data.tags["model"]: {
            "tags": run.data.tags,
            "params": run.data.params,
            "status": run.info.status,
            "reward": [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "Reward/reward")],
        }
        for run in client.search_runs([experiment], "tags.stage != 'study'")
    }


@pytest.fixture(scope="session")
def mirrored_study(tmp_path_factory: pytest.TempPathFactory):
    """Return a store with a made-up study of 20 trainings: the client, its experiment, and the report."""
    folder = tmp_path_factory.mktemp("mirrored_study")
    config = synthetic.study(seeds=2, models=1, datasets=1)
    synthetic.write(config, folder / "results/synthetic", steps=3)
    build.report(config, folder / "results/synthetic", folder / "reports/synthetic")
    others = [f"results/synthetic/{stage}/**/run.json" for stage in ("evaluate", "measure_speed")]
    for record in (file for pattern in others for file in folder.glob(pattern)):
        record.unlink()  # the made-up ones have no uid, and the store is to hold the trainings
    uri = f"sqlite:///{folder}/mlflow.db"
    assert rebuild_store(folder / "results", folder / "reports", uri) == (20, 20)
    client, experiment = open_store(uri, "synthetic")
    return client, experiment, folder / "reports/synthetic"
