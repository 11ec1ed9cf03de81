"""The record of a training's completions: Parquet files of a few optimizer steps each, of which the last are kept.

A file appears under its name only when it is complete, and no file crosses a checkpoint: a training that resumes
deletes the files after its checkpoint, and writes the same rows again.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nested_reft.errors import UserError
from nested_reft.records.files import check_outputs, checksum, read_json, read_rows

FOLDER = "completions"
STEPS_PER_FILE = 10
NAME = re.compile(r"completions_(\d+)-(\d+)\.parquet")


class CompletionFile(NamedTuple):
    """A file of the record, with its first and its last optimizer step."""

    path: Path
    first: int
    last: int

    @property
    def num_steps(self) -> int:
        """The number of optimizer steps in the file."""
        return self.last - self.first + 1


def completion_files(folder: Path) -> list[CompletionFile]:
    """Return the files of a record in the order of their steps; a folder that does not exist has none."""
    matches = [(path, NAME.fullmatch(path.name)) for path in folder.glob("*")]
    files = [CompletionFile(path, int(match[1]), int(match[2])) for path, match in matches if match]
    return sorted(files, key=lambda file: file.first)


class CompletionLog:
    """Writes the record of a training.

    Args:
        folder: the folder of the record.
        total_limit: the largest number of optimizer steps that are kept.
    """

    def __init__(self, folder: Path, total_limit: int) -> None:
        self.folder = folder
        self.total_limit = total_limit
        self.tables: dict[int, pa.Table] = {}  # step -> its rows, which are in no file yet

    def resume_at(self, step: int) -> None:
        """Delete the files after `step`, because the resumed training writes their rows again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("*.part"):
            part.unlink()
        for file in completion_files(self.folder):
            if file.first > step:
                file.path.unlink()

    def add(self, step: int, rows: pa.Table, is_last: bool) -> None:
        """Add the rows of a step, and write a file if it is full, or if `is_last`, because a checkpoint follows."""
        self.tables[step] = rows
        if is_last or len(self.tables) == min(STEPS_PER_FILE, self.total_limit):
            self.write()

    def write(self) -> None:
        """Write the rows that are in no file yet, and delete the oldest files beyond the limit."""
        path = self.folder / f"completions_{min(self.tables):05d}-{max(self.tables):05d}.parquet"
        part = path.with_name(path.name + ".part")
        pq.write_table(pa.concat_tables(self.tables.values()), part, compression="zstd")
        part.replace(path)
        self.tables.clear()
        files = completion_files(self.folder)
        while sum(file.num_steps for file in files) > self.total_limit:
            files.pop(0).path.unlink()


def recorded_settings(run: Path) -> dict[str, Any]:
    """Return the settings of a finished or unfinished training that records its completions.

    Raises:
        UserError: the folder is not that of a training, or the training records no completions.
    """
    started = run / "checkpoints" / "started.json"
    settings: dict[str, Any] = {}
    if (run / "run.json").exists():
        settings = read_json(run / "run.json")["settings"]
    elif started.exists():
        settings = json.loads(read_json(started)["fingerprint"])[0]
    if "training" not in settings:
        raise UserError(f"{run} is not the folder of a training; give a folder such as results/<study>/train/...")
    if not settings["training"].get("log_completions"):
        raise UserError(
            f"{run} has no record of its completions; set training.log_completions to true and train again"
        )
    return settings


def lacking(folder: Path, first: int, last: int) -> UserError:
    """Return the error of a record in which steps are missing."""
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return UserError(
        f"{folder} lacks the file with the completions of {steps}; restore it, or delete {folder.parent} and run the "
        "study again"
    )


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Refuse a file of the record that the block cannot read.

    Raises:
        UserError: the file is cut short or damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError):
        raise UserError(
            f"{path} is cut short or damaged, so that its completions cannot be read; restore it, or delete "
            f"{path.parent.parent} and run the study again"
        ) from None


def checked_files(run: Path) -> list[CompletionFile]:
    """Return the files of a training's record, after a check that none is missing.

    Raises:
        UserError: the training has no record, a file is missing, or a file of a finished training has changed.
    """
    recorded_settings(run)
    folder = run / FOLDER
    files = completion_files(folder)
    is_finished = (run / "run.json").exists()
    if not files and not is_finished:
        raise UserError(f"{run} has not written completions yet; wait until it has made {STEPS_PER_FILE} steps")
    last = 0
    for file in files:
        if last and file.first != last + 1:
            raise lacking(folder, last + 1, file.first - 1)
        with refusing_damage(file.path):
            pq.read_metadata(file.path)  # at the end of the file, which a cut file lacks
        last = file.last
    if is_finished:
        steps = read_rows(run / "metrics.jsonl")[-1]["step"]
        if last < steps:
            raise lacking(folder, last + 1, steps)
        check_outputs(run, {FOLDER: checksum(folder)})
    return files


def read_completions(run: Path) -> Iterator[tuple[int, pa.Table]]:
    """Yield each optimizer step of a training's record with its rows, in the order of the steps.

    Raises:
        UserError: the training has no record, or a file of it is missing, cut short or damaged.
    """
    for file in checked_files(run):
        with refusing_damage(file.path):
            table = pq.read_table(file.path)
        for step in range(file.first, file.last + 1):
            yield step, table.filter(pc.equal(table["step"], step))
