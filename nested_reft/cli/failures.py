"""Failures of the machine that a sentence explains better than a traceback: of its disk, its memory and its GPU."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

# torch and safetensors raise errors of their own where the disk is full.
DISK_IS_FULL = ("No space left on device", "Disk quota exceeded", "inline_container.cc")
IS_REFUSED = ("Read-only file system", "Permission denied")
# Of torch, whose errors have no types of their own for these.
NO_MEMORY = ("DefaultCPUAllocator",)
NO_GPU = ("No CUDA GPUs are available", "Found no NVIDIA driver", "driver version is insufficient")
SMALLER_BATCH = "lower sft.per_device_train_batch_size, training.per_device_train_batch_size or evaluation.batch_size"


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
        refused = next((text for text in IS_REFUSED if text in str(cause)), None)
        if refused:
            place = getattr(cause, "filename", None) or Path.cwd()
            return (
                f"{place} cannot be read or written ({refused}); correct that and run the same command again, which "
                "continues where it stopped"
            )
        if type(cause).__name__ == "OutOfMemoryError":  # of torch, which is not imported here
            return f"the GPU has too little memory; {SMALLER_BATCH}, and see docs/how-to/gpu.md"
        if isinstance(cause, MemoryError) or any(text in str(cause) for text in NO_MEMORY):
            return f"the machine has too little memory; run fewer jobs at once with --cores, or {SMALLER_BATCH}"
        if any(text in str(cause) for text in NO_GPU):
            return "torch finds no GPU that it can use; see what `nvidia-smi` says, or set jobs.gpus to 0"
    return None
