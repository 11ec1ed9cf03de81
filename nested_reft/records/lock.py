"""Locks that end with their process: one Snakemake per study, and one writer per folder of a product.

A lock is a `flock` on a file that names its holder. The operating system releases it when the process ends, whatever
ends the process, so that a lock never has to be removed by hand. Where the file system has no such locks, the
functions below do nothing.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nested_reft.config.layout import REPORTS, RESULTS
from nested_reft.errors import UserError

log = logging.getLogger(__name__)


def open_lock(path: Path) -> int:
    """Return a descriptor of the lock file. Closing it releases the lock, and child processes do not inherit it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def read_holder(descriptor: int) -> str:
    """Return the process that took the lock last, or an empty text if no process ever did."""
    return os.pread(descriptor, 1000, 0).decode()


def write_holder(descriptor: int) -> None:
    """Write this process into the lock file."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of this file. The lock file is not created, and it does not change."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def study_lock(directory: Path, study: str) -> Path:
    """Return the lock file of a study that runs in a working directory."""
    return directory / ".snakemake" / "nested-reft" / f"{study}.lock"


def lock_study(directory: Path, study: str) -> None:
    """Lock a study in the working directory for this process, and remove the lock files that a killed Snakemake left.

    Snakemake's own lock files outlive a Snakemake that is killed. Those that list products of this study are removed
    if the lock shows that no process runs the study. Lock files of another study stay, because two studies may run in
    one directory. Lock files of another machine stay, because the lock of that machine may be invisible here.

    Raises:
        UserError: another process runs the study.
    """
    folder = directory / ".snakemake"
    descriptor = open_lock(study_lock(directory, study))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = read_holder(descriptor) or "another process"
        raise UserError(
            f"the study {study} in {directory} is in use by the snakemake of {holder}; wait until it ends, or end it, "
            "and start again"
        ) from None
    except OSError:
        return
    stale = [path for path in folder.glob("locks/*.lock") if lists_products_of(study, path)]
    if stale and not read_holder(descriptor).endswith(f" on {socket.gethostname()}"):
        return
    for path in stale:
        path.unlink()
    write_holder(descriptor)


def lists_products_of(study: str, lock_file: Path) -> bool:
    """Return whether a lock file of Snakemake, which has a path per line, lists a file of the study."""
    folders = tuple(f"{template.format(study=study)}/" for template in (RESULTS, REPORTS))
    return any(line.startswith(folders) for line in lock_file.read_text().splitlines())


@contextmanager
def lock_product(folder: Path) -> Iterator[bool]:
    """Lock the folder of a product; wait while another process writes the product.

    A job survives a Snakemake that is killed. The next Snakemake starts the job again, which waits here, so that two
    processes never write the same files.

    Yields:
        Whether another process has written the product meanwhile.
    """
    descriptor = open_lock(folder / ".lock")
    try:
        yield take_or_wait(descriptor, folder)
    finally:
        os.close(descriptor)


def take_or_wait(descriptor: int, folder: Path) -> bool:
    """Take the lock of a product, and log the process that it waits for; return whether it has waited."""
    waits = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = read_holder(descriptor) or "another process"
        log.warning("waiting for %s, which was started earlier and writes %s", holder, folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        waits = True
    except OSError:
        return False
    write_holder(descriptor)
    return waits
