"""A study whose processes are killed at random moments has the results of an undisturbed one, and nothing else.

After each kill that ends the study, the same command is started again. `NESTED_REFT_KILLS=50 pytest -s -k larger
tests/test_kills.py` kills a larger study as often as the variable says, and prints where each kill hit.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import pytest
import yaml

from nested_reft.records.files import checksum, read_json
from nested_reft.records.mlflow_mirror import open_store
from nested_reft.stages.checkpoints import COMPLETE
from tests.conftest import ROOT, SMOKE_GRID

KINDS = ("workflow", "evaluation", "saving", "training", "tree", "grader")


class Kill(NamedTuple):
    """A kill: its kind, the stages that it hit, how many products were finished, and how many processes lived."""

    kind: str
    victim: str
    products: int
    processes: int


def processes(directory: Path) -> list[psutil.Process]:
    """Return the living processes of a study, which work in its directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(directory) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


def name_of(process: psutil.Process) -> str:
    """Return what a process of a study does: `train`, `evaluate`, ..., `grader`, or an empty text."""
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return ""
    if any("algebra_worker" in argument for argument in arguments):
        return "grader"
    return arguments[2] if len(arguments) > 2 and arguments[1].endswith("/nested-reft") else ""


def is_saving(directory: Path) -> bool:
    """Return whether a process is about to save a checkpoint or a model."""
    results = directory / "results"
    checkpoints = results.glob("*/*/**/checkpoints/checkpoint-*")
    return any(not (path / COMPLETE).exists() for path in checkpoints) or any(results.rglob("model.part"))


def victims(directory: Path, kind: str) -> list[psutil.Process]:
    """Return the processes that a kill of this kind could hit now."""
    of_training = ("sft", "train")
    wanted = {"evaluation": ("evaluate",), "training": of_training, "saving": of_training, "grader": ("grader",)}
    stages = wanted.get(kind, ("sft", "train", "evaluate"))
    return [process for process in processes(directory) if name_of(process) in stages]


def disturb(
    command: Sequence[str], directory: Path, kinds: Sequence[str], draw: random.Random, longest_wait_s: float = 6.0
) -> list[Kill]:
    """Run a study until it is complete, and kill its processes as often as there are kinds; return the kills.

    Args:
        command: the command that starts the study, and that continues it.
        directory: the working directory of the study.
        kinds: the kind of each kill, in their order; the last ones are left out if the study is complete before.
        draw: draws the moments and the victims.
        longest_wait_s: a kill comes up to this many seconds after the one before, or after its victim has started.
    """
    kills: list[Kill] = []
    pending = list(kinds)
    started, number = time.monotonic(), 0
    while True:
        number += 1
        with (directory / f"start-{number}.log").open("w") as log:
            study = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, start_new_session=True)
        while study.poll() is None and pending:
            kill = kill_one(study, directory, pending[0], draw, longest_wait_s)
            if kill:
                kills.append(kill)
                pending.pop(0)
                where = f"{kill.products} products, {kill.processes} processes, start {number}"
                print(f"{time.monotonic() - started:6.1f} s: {kill.kind}, {kill.victim}; {where}", flush=True)
        if study.wait() == 0:
            return kills
        assert study.returncode in (1, -9), (directory / f"start-{number}.log").read_text()
        assert number <= len(kinds) + 1 or not pending, "a start failed that no kill has disturbed"


def kill_one(
    study: subprocess.Popen[bytes], directory: Path, kind: str, draw: random.Random, longest_wait_s: float
) -> Kill | None:
    """Wait for a victim, and then for a random time or until it saves; kill it. Return None if there is none."""
    if not victims(directory, kind):
        time.sleep(0.05)
        return None
    time.sleep(draw.uniform(0, longest_wait_s))
    while kind == "saving" and not is_saving(directory):
        if study.poll() is not None:
            return None
        time.sleep(0.001)
    living, hit = processes(directory), victims(directory, kind)
    if not hit or study.poll() is not None:
        return None
    victim = draw.choice(hit)
    killed = {"tree": living, "workflow": [psutil.Process(study.pid)]}.get(kind, [victim])
    names = [name_of(process) for process in hit]
    for process in killed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    products = len(list(directory.glob("results/*/*/**/run.json")))
    what = (
        f"beside {', '.join(names)}" if kind in ("tree", "workflow") else name_of(victim) or names[hit.index(victim)]
    )
    return Kill(kind, what, products, len(living))


def check_same(reference: Path, directory: Path, study: str) -> None:
    """Check that a disturbed study has the files of an undisturbed one, and has left no process and no rest."""
    for name in ("results.csv", "steps.csv"):
        tables = [pd.read_csv(folder / f"reports/{study}" / name, dtype=str) for folder in (reference, directory)]
        timings = [column for column in tables[0] if column.endswith("_s") or column == "seconds"]
        one, other = (table.drop(columns=timings).to_csv(index=False) for table in tables)
        assert one == other, name
    patterns = ("**/model", "**/records.parquet", "**/skipped_layers.jsonl")
    for pattern in patterns:
        paths = [
            {path.relative_to(folder): checksum(path) for path in folder.glob(f"results/{study}/{pattern}")}
            for folder in (reference, directory)
        ]
        assert paths[0] == paths[1] and paths[0], pattern
    rests = [path for name in ("checkpoints", "*.part", "*.trash") for path in directory.glob(f"results/**/{name}")]
    assert rests == []
    deadline = time.monotonic() + 10
    while processes(directory) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [process.cmdline() for process in processes(directory)] == []
    client, experiment = open_store(f"sqlite:///{directory}/results/mlflow.db", study)
    status = {run.data.tags["uid"]: run.info.status for run in client.search_runs([experiment])}
    assert set(status.values()) <= {"FINISHED", "FAILED", "KILLED"}
    products = [read_json(path)["uid"] for path in directory.glob(f"results/{study}/**/run.json")]
    assert {status[product] for product in products} == {"FINISHED"}


def command_of(*arguments: str) -> list[str]:
    """Return the documented command of a study, on two cores."""
    return [str(Path(sys.executable).with_name("nested-reft")), "run", *arguments, "--cores", "2"]


def check_nothing_to_be_done(command: Sequence[str], directory: Path) -> None:
    """Check that the command of a study finds it complete."""
    again = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr, again.stdout + again.stderr


@pytest.mark.slow
def test_a_part_of_a_study_is_made_again_under_kills(smoke_study, tmp_path):
    """A training of the finished study is made again, with its evaluation, that of another training and the report."""
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study, symlinks=True)
    *_, kept, training = sorted(path.parent for path in study.glob("results/smoke/train/**/run.json"))
    shutil.rmtree(training)
    for product in (kept, training):
        shutil.rmtree(study / "results/smoke/evaluate" / product.relative_to(study / "results/smoke"))
    shutil.rmtree(study / "reports")  # else nothing would need the training
    command = command_of(str(ROOT / "config/smoke.yaml"), SMOKE_GRID)
    kinds = ("saving", "workflow", "evaluation")
    kills = disturb(command, study, kinds, random.Random(0))
    assert [kill.kind for kill in kills] == list(kinds)
    check_same(smoke_study, study, "smoke")
    check_nothing_to_be_done(command, study)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 5])
def test_a_study_killed_several_times_ends_as_if_nothing_had_happened(number, smoke_study, tmp_path):
    command = command_of(str(ROOT / "config/smoke.yaml"), SMOKE_GRID)
    kills = disturb(command, tmp_path, KINDS[:number], random.Random(0))
    assert [kill.kind for kill in kills] == list(KINDS[:number])
    check_same(smoke_study, tmp_path, "smoke")
    attempts = [read_json(path)["attempts"] for path in tmp_path.glob("results/smoke/*/**/run.json")]
    assert max(attempts) > 1
    check_nothing_to_be_done(command, tmp_path)


# A reward whose answers are compared in the child processes of the grader, of which one can be killed.
REWARD = """
from nested_reft.grading import algebra


def compared(completions, trainer_state, **kwargs):
    step = trainer_state.global_step + 1
    pairs = [(f"{step}x+{row}", f"{row}+{2 * step}x/2") for row in range(len(completions))]
    return [float(algebra.compare(*pair) == "equal") for pair in pairs]
"""


def write_larger_study(directory: Path) -> list[str]:
    """Write a study of seven training runs of four steps; return its command."""
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    study["study"] = "larger"
    study["grid"] |= {"skip_ratio": [0.1, 0.15], "mitigation": ["base", "practical", "retrace"]}
    study["benchmarks"] = {name: entry | {"size": 60} for name, entry in study["benchmarks"].items()}
    study["evaluation"] |= {"batch_size": 1}  # four batches
    reward = directory / "reward.py"
    reward.write_text(REWARD)
    study["training"] |= {
        "max_steps": 4,
        "max_completion_length": 26,
        "reward_funcs": ["correctness", f"{reward}:compared"],
    }
    (directory / "larger.yaml").write_text(yaml.safe_dump(study))
    return command_of(str(directory / "larger.yaml"))


@pytest.mark.slow
@pytest.mark.skipif("NESTED_REFT_KILLS" not in os.environ, reason="takes hours; NESTED_REFT_KILLS=50 runs it")
def test_a_larger_study_killed_as_often_as_asked_ends_as_if_nothing_had_happened(tmp_path):
    left = int(os.environ["NESTED_REFT_KILLS"])
    command = write_larger_study(tmp_path)
    reference = tmp_path / "reference"
    reference.mkdir()
    subprocess.run(command, cwd=reference, check=True, stdout=subprocess.DEVNULL)
    draw, total = random.Random(0), Counter()
    while left > 0:
        directory = tmp_path / f"killed-{left}"
        directory.mkdir()
        kinds = draw.sample(KINDS * 2, min(left, 7))
        kills = disturb(command, directory, kinds, draw, longest_wait_s=30)
        check_same(reference, directory, "larger")
        total.update(kill.kind for kill in kills)
        left -= len(kills)
    print(dict(total))
