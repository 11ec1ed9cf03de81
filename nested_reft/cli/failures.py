"""Failures of the machine that a sentence explains better than a traceback: a full disk, too little GPU memory."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

# torch and safetensors raise errors of their own where the disk is full.
DISK_IS_FULL = ("No space left on device", "Disk quota exceeded", "inline_container.cc")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and the errors that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: BaseException) -> str | None:
    """Return one sentence with the remedy for a failure of the machine, or None for any other error."""
    for cause in causes(error):
        is_errno = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_errno or any(text in str(cause) for text in DISK_IS_FULL):
            free = shutil.disk_usage(Path.cwd()).free / 1e9
            return (
                f"the disk of {Path.cwd()} is full, or its quota is used up ({free:.1f} GB free); free space and run "
                "the same command again, which continues where it stopped"
            )
        if type(cause).__name__ == "OutOfMemoryError":  # of torch, which is not imported here
            return (
                "the GPU has too little memory; lower sft.per_device_train_batch_size, "
                "training.per_device_train_batch_size or evaluation.batch_size, and see docs/how-to/gpu.md"
            )
    return None
