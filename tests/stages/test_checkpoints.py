"""Whenever a training is killed, its folder holds a whole checkpoint or none, and the next attempt ends as usual.

SIGKILL leaves the files as they are on the disk. The tests copy the folder of a training before each write, rename
and deletion, and add copies in which the file that was being written is empty or cut in half. Each copy is the folder
of a training that was killed at this moment.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nested_reft.config.sections import Nesting, Prompt
from nested_reft.config.study import Run
from nested_reft.errors import UserError
from nested_reft.records.files import checksum, output_checksums, read_json
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages import checkpoints, train
from tests.conftest import TINY
from tests.stages.test_train import SMALL, untimed

TWO = SMALL.model_copy(update={"max_steps": 2, "log_completions": True})
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
# The snapshot that the interpreter calls before a write; audit hooks cannot be removed.
before_write: list[Callable[[], None]] = []


def audit(event: str, arguments: tuple[object, ...]) -> None:
    """Call the snapshot before a file is opened for writing, renamed or deleted."""
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if before_write and (is_write or event in EVENTS):
        snapshot = before_write.pop()  # the snapshot itself writes
        snapshot()
        before_write.append(snapshot)


sys.addaudithook(audit)


class Snapshots:
    """Copies of a folder at each moment at which a kill leaves another state of its files.

    Args:
        folder: the folder.
        copies: the folder of the copies.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.states: list[Path] = []
        self.files: dict[str, tuple[int, int, int]] = {}

    def listed(self) -> dict[str, tuple[int, int, int]]:
        """Return relative path -> inode, size, and time of the last change, of each file and folder."""
        found = {}
        for path in self.folder.rglob("*"):
            stat = path.stat()
            size = 0 if path.is_dir() else stat.st_size
            found[str(path.relative_to(self.folder))] = (stat.st_ino, size, stat.st_mtime_ns)
        return found

    def copy(self) -> Path:
        """Return a new copy of the folder."""
        self.states.append(self.copies / f"{len(self.states):03}")
        shutil.copytree(self.folder, self.states[-1])
        return self.states[-1]

    def take(self) -> None:
        """Copy the folder if it has changed, and before that as a kill during this change would leave it."""
        files = self.listed()
        if files == self.files:
            return
        old = {(inode, changed) for inode, _, changed in self.files.values()}
        written = [
            name
            for name, (inode, _, changed) in files.items()
            if (inode, changed) not in old and (self.folder / name).is_file()
        ]
        written.sort(key=lambda name: files[name][2])
        for index, name in enumerate(written):
            inode, size, _ = self.files.get(name, (0, 0, 0))
            before = size if inode == files[name][0] else 0  # of a file that was appended to
            for half in (0, 1):
                torn = self.copy()
                for later in written[index + 1 :]:
                    (torn / later).unlink()
                os.truncate(torn / name, before + half * (files[name][1] - before) // 2)
        self.files = files
        self.copy()


@pytest.fixture()
def model(tmp_path, small_model) -> Path:
    """Return the folder of a small model."""
    small_model.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def train_small(out, model, data, settings) -> Path:
    """Train the small model as the stage does; return the folder of the product."""
    run = Run(model="small", dataset="mixed", skip_ratio=0.5, border=1, mitigation="retrace", seed=0)
    record = StageRecord(out, "train", run.model_dump(), settings.model_dump(), {}, None, "test")
    train.train(settings, Nesting(), Prompt(), run, model, data, record)
    return out


def killed(tmp_path, model, data, settings) -> tuple[Path, list[Path]]:
    """Train once; return the folder of the product, and the folders of trainings that were killed at each moment."""
    out = tmp_path / "whole"
    snapshots = Snapshots(out, tmp_path / "killed")
    before_write.append(snapshots.take)
    try:
        train_small(out, model, data, settings)
    finally:
        before_write.clear()
    return out, snapshots.states


def product(folder: Path) -> dict[str, object]:
    """Return what must not depend on a kill: every file, and the rows without what is measured."""
    outputs = output_checksums(folder)
    del outputs["metrics.json"], outputs["metrics.jsonl"]  # their times differ
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {"outputs": outputs, "names": names, "rows": untimed(folder)}


def recovered(state: Path, saved: dict[str, str]) -> tuple[str, ...]:
    """Check that nothing unfinished in the folder counts as finished; return its checkpoint, and the names in it.

    Args:
        state: the folder of a training that was killed.
        saved: name -> checksum of each checkpoint when it was first complete; new ones are added.
    """
    if (state / "run.json").exists():
        assert output_checksums(state).items() >= read_json(state / "run.json")["outputs"].items()
    found = checkpoints.last_checkpoint(state / "checkpoints")
    if found:
        checkpoints.check_checkpoint(found)
        assert saved.setdefault(found.name, checksum(found)) == checksum(found)
    names = {path.name for folder in (state, state / "checkpoints") for path in folder.glob("*")}
    return found.name if found else "", *sorted(names)


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.nightly])])
def test_a_training_killed_at_any_write_goes_on_to_the_same_product(stride, tmp_path, model, data):
    whole, states = killed(tmp_path, model, data, TWO)
    saved: dict[str, str] = {}
    found = [recovered(state, saved) for state in states]
    different = dict(zip(found, states, strict=True))
    unfinished = [checkpoint for checkpoint, *names in found if "run.json" not in names]
    assert unfinished == sorted(unfinished)  # no checkpoint is deleted before the next one is complete
    assert set(saved) == {"checkpoint-1", "checkpoint-2"} and len(states) > 100 and len(different) > 20
    expected = product(whole)
    for state in list(different.values())[::stride]:
        assert product(train_small(state, model, data, TWO)) == expected, state


def test_a_damaged_checkpoint_is_named_and_an_incomplete_one_is_deleted(tmp_path, model, data, monkeypatch, caplog):
    out = tmp_path / "run"
    monkeypatch.setattr(StageRecord, "finish", lambda *arguments, **facts: None)  # the checkpoints stay
    train_small(out, model, data, TWO)
    checkpoint = out / "checkpoints/checkpoint-2"
    incomplete = Path(shutil.copytree(checkpoint, out / "checkpoints/checkpoint-3"))
    (incomplete / checkpoints.COMPLETE).unlink()
    optimizer = checkpoint / "optimizer.pt"
    content = optimizer.read_bytes()
    for damaged in (content[:1000] + bytes([content[1000] ^ 1]) + content[1001:], content[:-1], None):
        optimizer.write_bytes(damaged) if damaged else optimizer.unlink()
        with pytest.raises(UserError) as refusal:
            train_small(out, model, data, TWO)
        assert str(refusal.value) == (
            f"{optimizer} is not what the training wrote: its checksum differs from that in complete.json; restore "
            f"it, or delete {checkpoint} to train from the first step, and run the study again"
        )
    deleted = "the checkpoint of step 3 is incomplete, because its job was killed; it is deleted"
    assert caplog.messages.count(deleted) == 1 and not incomplete.exists()
    optimizer.write_bytes(content)
    train_small(out, model, data, TWO)
