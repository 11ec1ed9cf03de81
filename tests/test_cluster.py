"""Studies on the Slurm of this machine. Where none answers, the tests are skipped."""

import csv
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nested_reft.records.files import read_json
from tests.conftest import ROOT, SMOKE_GRID, run

ON_SLURM = ("--configfile", str(ROOT / "config/smoke.yaml"), "--workflow-profile", str(ROOT / "profiles/slurm"))
TRAINING = Path("results/smoke/train/model~tiny-28/dataset~mixed/skip_ratio~0.15/border~1/mitigation~base/seed~0")


def slurm_answers() -> bool:
    """Return whether jobs can be submitted to a Slurm from this machine."""
    return shutil.which("sinfo") is not None and run("timeout", "20", "sinfo").returncode == 0


def needs_slurm(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test with `slurm`, and skip it where no Slurm answers."""
    skip = pytest.mark.skipif(not slurm_answers(), reason="no Slurm answers on this machine: `sinfo` fails")
    return pytest.mark.slurm(skip(test))


def without_times(results: Path) -> list[str]:
    """Return the lines of a results.csv without the columns of times and speeds."""
    rows = list(csv.reader(io.StringIO((results / "reports/smoke/results.csv").read_text())))
    kept = [place for place, name in enumerate(rows[0]) if not name.endswith(("_s", "seconds"))]
    return [",".join(row[place] for place in kept) for row in rows]


def queued(directory: Path) -> list[str]:
    """Return the ids of the Slurm jobs that were submitted from a directory and have not ended."""
    lines = run("squeue", "--me", "--noheader", "--format=%i|%Z").stdout.splitlines()
    return [job for job, folder in (line.split("|") for line in lines) if folder == str(directory)]


@needs_slurm
def test_what_no_job_on_slurm_could_use_is_a_sentence_each_before_the_first_job(tmp_path):
    mistakes = ("--set-resources", "sft:slurm_partition=nowhere", "train:gpu=99")
    mistakes += ("--config", "tracking={uri: 'http://127.0.0.1:9'}")
    refused = run(sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), *ON_SLURM, *mistakes, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    server, partition, gpus = (line for line in refused.stderr.splitlines() if line.startswith("Error"))
    assert server.startswith("Error: the MLflow store 'http://127.0.0.1:9' cannot be opened (Connection refused); ")
    assert partition.startswith("Error: Slurm has no partition nowhere, but ")
    assert gpus.startswith("Error: a job of `train` asks for 99 GPUs, but no node of the partition ")
    assert "Traceback" not in refused.stderr and queued(tmp_path) == []
    assert not (tmp_path / "results").exists()


@needs_slurm
@pytest.mark.slow
def test_a_training_that_is_cancelled_on_slurm_ends_with_the_numbers_of_one_machine(tmp_path, smoke_study):
    """A training of the finished study is made again as a Slurm job, with its evaluation and the report."""
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study, symlinks=True)
    run_folder = study / TRAINING
    weights = (run_folder / "model/model.safetensors").read_bytes()
    shutil.rmtree(run_folder)
    shutil.rmtree(study / "results/smoke/evaluate" / TRAINING.relative_to("results/smoke"))
    shutil.rmtree(study / "reports")  # else nothing would need the training
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), *ON_SLURM]
    command += ["--config", SMOKE_GRID, "--slurm-init-seconds-before-status-checks", "10"]
    log = study / "terminal.txt"
    with log.open("w") as terminal:
        process = subprocess.Popen(command, cwd=study, stdout=terminal, stderr=terminal)
    try:
        while not (run_folder / "checkpoints/started.json").exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        (job,) = queued(study)
        subprocess.run(["scancel", job], check=True)
        assert process.wait(timeout=600) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        subprocess.run(["scancel", *queued(study)], capture_output=True)
    assert "failed: train tiny-28 mixed" in log.read_text() and "the job was cancelled" in log.read_text()
    assert read_json(run_folder / "run.json")["attempts"] == 2
    assert (run_folder / "model/model.safetensors").read_bytes() == weights
    assert without_times(study) == without_times(smoke_study)
    assert len(list(study.glob("logs/slurm/**/*.log"))) == 3  # two of the training, one of the evaluation
