"""Checkpoints that count only when they are whole, whenever their process was killed.

transformers writes the files of a checkpoint one after the other, on several ranks at once. The file `complete.json`,
with the checksums of the others, is added in one piece when all ranks have written theirs; a folder without it is the
rest of a save that a kill has ended. The checkpoint before is deleted after that.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nested_reft.errors import UserError
from nested_reft.processes import num_processes
from nested_reft.records.files import checksums, first_damaged, read_json, write_json

log = logging.getLogger(__name__)

COMPLETE = "complete.json"


def checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the step and the folder of each checkpoint in a folder, complete or not."""
    for path in folder.glob("checkpoint-*"):
        if name := re.fullmatch("checkpoint-([0-9]+)", path.name):
            yield int(name[1]), path


class KeepLastCheckpoint(TrainerCallback):
    """Completes a checkpoint that transformers has written, and then deletes all others.

    Args:
        trainer: the trainer that saves the checkpoints.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint of this step when all ranks have written their files."""
        self.trainer.accelerator.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        saved = dict(checkpoints(Path(args.output_dir)))
        last = saved.pop(state.global_step)
        write_json(last / COMPLETE, checksums(last, *sorted(path.name for path in last.iterdir())))
        for path in saved.values():
            delete_checkpoint(path)


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint, which counts as incomplete as soon as a part of it is missing."""
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in the folder, or None."""
    complete = {step: path for step, path in checkpoints(folder) if (path / COMPLETE).exists()}
    return complete[max(complete)] if complete else None


def check_checkpoint(path: Path) -> None:
    """Refuse a complete checkpoint that differs from what the training wrote.

    Raises:
        UserError: a file is missing, cut or changed.
    """
    if name := first_damaged(path, read_json(path / COMPLETE)):
        raise UserError(
            f"{path / name} is not what the training wrote: its checksum differs from that in {COMPLETE}; restore "
            f"it, or delete {path} to train from the first step, and run the study again"
        )


def check_processes_of(path: Path, is_sharded: bool) -> None:
    """Refuse a checkpoint of a job that ran on another number of processes, or with the model sharded otherwise.

    Args:
        path: the checkpoint.
        is_sharded: whether this job shards the model (`distributed: fsdp`).

    Raises:
        UserError: the checkpoint was written by such a job, so that the training would not go on to the same bits.
    """
    written = len(list(path.glob("rng_state*.pth")))  # each rank writes its random state
    if written != num_processes():
        raise UserError(
            f"{path} was written by {written} process(es), and {num_processes()} would not continue the same "
            "training; set jobs.gpus or jobs.num_processes as it was, or delete the folder to start from step 0"
        )
    was_sharded = any(path.glob("pytorch_model_fsdp*"))
    if was_sharded != is_sharded:
        raise UserError(
            f"{path} was written {'with' if was_sharded else 'without'} distributed fsdp, and a job cannot resume "
            "from it otherwise; set jobs.distributed as it was, or delete the folder to start from the first step"
        )


def delete_incomplete(folder: Path) -> None:
    """Delete what a kill during a save has left in the folder, and log it."""
    for step, path in checkpoints(folder):
        if not (path / COMPLETE).exists():
            log.warning("the checkpoint of step %d is incomplete, because its job was killed; it is deleted", step)
            delete_checkpoint(path)
