"""A signal ends a stage after a checkpoint, and the next attempt gives the bits of a run that nothing interrupted."""

import os
import signal
import time

import pyarrow as pa
import pytest

from nested_reft.errors import PreemptedError
from nested_reft.records.completions import completion_files, read_completions
from nested_reft.records.files import read_json
from nested_reft.records.mlflow_mirror import open_store
from nested_reft.records.stage_record import StageRecord
from tests.conftest import ROOT, run, start
from tests.stages.test_sft import SMALL as SFT
from tests.stages.test_sft import warm_up
from tests.stages.test_train import REUSED, SMALL, equal, train_run, untimed, weights

FIVE = SMALL.model_copy(update={"max_steps": 5, "save_steps": 100, "log_completions": True})  # two steps per epoch


@pytest.fixture()
def signal_after(monkeypatch):
    """Return a function that lets the process get a signal after the row of a step, until it is called again."""
    log = StageRecord.log

    def send(step, number=signal.SIGTERM):
        def log_and_send(self, at, metrics):
            log(self, at, metrics)
            if at == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(StageRecord, "log", log_and_send)

    return send


def check_resumes(stage, tmp_path, signal_after, step, ends_after, number=signal.SIGTERM):
    """Check that a stage ends after a step, and that its second attempt is the rest of an uninterrupted run."""
    whole = stage(tmp_path / "whole")
    signal_after(step, number)
    name = number.name
    with pytest.raises(PreemptedError, match=f"{name} ended the training after step {ends_after} of .* is resumable"):
        stage(tmp_path / "stopped")
    stopped = tmp_path / "stopped"
    assert [path.name for path in stopped.glob("checkpoints/checkpoint-*")] == [f"checkpoint-{ends_after}"]
    assert not (stopped / "run.json").exists() and not (stopped / "model").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal_after(None)
    stage(stopped)
    assert read_json(stopped / "run.json")["attempts"] == 2
    assert untimed(stopped) == untimed(whole)
    assert equal(weights(stopped), weights(whole))


@pytest.mark.parametrize(
    ("sampler", "step", "number"),
    [
        ("generate", 1, signal.SIGTERM),
        ("generate", 3, signal.SIGUSR1),  # in the second epoch
        ("engine", 1, signal.SIGUSR1),
        ("engine", 3, signal.SIGTERM),
        pytest.param("engine-compiled", 3, signal.SIGTERM, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_a_signal_ends_a_training_that_goes_on_to_the_same_bits(sampler, step, number, tmp_path, data, signal_after):
    settings = FIVE.model_copy(update={"sampler": sampler})

    def stage(folder):
        return train_run(folder, data, 0.15, "retrace", settings)

    check_resumes(stage, tmp_path, signal_after, step, step + 1, number)
    folders = tmp_path / "stopped", tmp_path / "whole"
    assert [len(completion_files(folder / "completions")) for folder in folders] == [2, 1]  # a file ends at a signal
    stopped, whole = (pa.concat_tables(rows for _, rows in read_completions(folder)) for folder in folders)
    assert stopped.equals(whole)


def test_a_training_that_reuses_completions_ends_when_they_are_used_up(tmp_path, data, signal_after):
    settings = REUSED.model_copy(update={"sampler": "generate", "save_steps": 100})
    check_resumes(
        lambda folder: train_run(folder, data, 0.15, "retrace", settings), tmp_path, signal_after, step=2, ends_after=4
    )


def test_a_warm_up_goes_on_to_the_same_bits(tmp_path, data, signal_after):
    settings = SFT.model_copy(update={"num_train_epochs": 2, "save_steps": 100})
    check_resumes(lambda folder: warm_up(folder, data, settings), tmp_path, signal_after, step=2, ends_after=3)


def test_a_signal_during_the_last_step_changes_nothing(tmp_path, data, signal_after):
    signal_after(SMALL.max_steps - 1)
    assert (train_run(tmp_path / "run", data, 0.15, "retrace") / "run.json").exists()


@pytest.mark.slow
def test_a_stopped_command_says_that_it_is_resumable_and_its_mlflow_run_is_killed(tmp_path):
    instance = "dataset~mixed/skip_ratio~0.15/border~1/mitigation~retrace/seed~0"
    target = f"results/smoke/train/model~tiny-28/{instance}"
    config = tmp_path / "long.yaml"
    text = (ROOT / "config/smoke.yaml").read_text().replace("max_steps: 2", "max_steps: 500")
    config.write_text(text.replace("num_train_epochs: 1", "num_train_epochs: 0"))
    study = start("nested-reft", "run", str(config), f"{target}/run.json", "--cores", "1", cwd=tmp_path)
    rows = tmp_path / target / "checkpoints/metrics.jsonl"
    while not rows.exists():
        assert study.poll() is None, study.communicate()
        time.sleep(0.1)
    holder = (tmp_path / target / ".lock").read_text()
    os.kill(int(holder.split()[1]), signal.SIGTERM)
    _, printed = study.communicate()
    assert study.returncode == 1 and "SIGTERM ended the training after step" in printed
    status = run("nested-reft", "status", str(config), cwd=tmp_path).stdout
    assert "1 stopped" in status, status
    client, experiment = open_store(f"sqlite:///{tmp_path}/results/mlflow.db", "smoke")
    (found,) = client.search_runs([experiment], "tags.stage = 'train'")
    assert found.info.status == "KILLED"
