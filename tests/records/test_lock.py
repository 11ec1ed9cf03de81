"""Locks end with their process, and never remove the lock of a process that may still run."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nested_reft.errors import UserError
from nested_reft.records.lock import is_locked, lock_study
from tests.conftest import ROOT

HOLD = """
from pathlib import Path
from nested_reft.records.lock import lock_study, lock_product
held = {0}(Path({1!r}){2})
if held is not None:
    held.__enter__()
print("held", flush=True)
{3}
"""


@contextmanager
def holding(
    function: str, folder: Path, then: str = "input()", study: str = "smoke"
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that takes a lock, prints `held`, and runs a statement; kill it at the end."""
    more = f", {study!r}" if function == "lock_study" else ""
    code = HOLD.format(function, str(folder), more, then)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def write_stale_lock(directory: Path) -> Path:
    """Write the lock file that a killed Snakemake leaves behind."""
    path = directory / ".snakemake/locks/0.output.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("results/smoke/tracking.json\n")
    return path


def test_nothing_is_locked_where_a_folder_is_missing_or_a_file(tmp_path):
    """`nested-reft status` reads the locks of products whose folders do not exist yet."""
    (tmp_path / "results").touch()
    assert not is_locked(tmp_path / "missing/.lock") and not is_locked(tmp_path / "results/.lock")


def test_a_study_in_use_is_refused_in_one_sentence_which_names_the_holder(tmp_path):
    with holding("lock_study", tmp_path) as other:
        assert other.stdout.readline() == "held\n"
        stale = write_stale_lock(tmp_path)
        with pytest.raises(UserError) as error:
            lock_study(tmp_path, "smoke")
        assert str(error.value).startswith(
            f"the study smoke in {tmp_path} is in use by the snakemake of process {other.pid} on "
        )
        assert "\n" not in str(error.value)
        assert stale.exists()


def test_lock_files_of_a_killed_process_are_removed(tmp_path):
    with holding("lock_study", tmp_path) as other:
        assert other.stdout.readline() == "held\n"
        stale = write_stale_lock(tmp_path)
        other.send_signal(signal.SIGKILL)
    with holding("lock_study", tmp_path, "pass") as after:
        assert after.stdout.readline() == "held\n"
    assert not stale.exists()


@pytest.mark.parametrize("holder", ["", "process 7 on another-machine"])
def test_lock_files_of_an_unknown_process_or_machine_stay(tmp_path, holder):
    stale = write_stale_lock(tmp_path)
    (tmp_path / ".snakemake/nested-reft").mkdir()
    (tmp_path / ".snakemake/nested-reft/smoke.lock").write_text(holder)
    with holding("lock_study", tmp_path, "pass") as process:
        assert process.stdout.readline() == "held\n"
    assert stale.exists()
    assert (tmp_path / ".snakemake/nested-reft/smoke.lock").read_text() == holder


def test_two_studies_share_a_directory_and_leave_each_other_s_lock_files(tmp_path):
    with holding("lock_study", tmp_path) as other:
        assert other.stdout.readline() == "held\n"
        of_smoke = write_stale_lock(tmp_path)
        with holding("lock_study", tmp_path, "pass", study="mine") as second:
            assert second.stdout.readline() == "held\n"
        assert of_smoke.exists()


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    child = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    with holding("lock_study", tmp_path, child) as other:
        assert other.stdout.readline() == "held\n"
        orphan = int(other.stdout.readline())
        other.kill()
        other.wait()
    try:
        with holding("lock_study", tmp_path, "pass") as after:
            assert after.stdout.readline() == "held\n"
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert f" on {socket.gethostname()}" in (tmp_path / ".snakemake/nested-reft/smoke.lock").read_text()


def test_the_second_writer_of_a_product_waits_for_the_first(tmp_path):
    with holding("lock_product", tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with holding("lock_product", tmp_path, "pass") as second:
            while "waiting for process" not in (line := second.stderr.readline()):
                assert line, "the second writer ended without waiting"
            assert f"waiting for process {first.pid} on " in line and str(tmp_path) in line
            time.sleep(0.5)
            assert second.poll() is None
            first.kill()
            assert second.stdout.readline() == "held\n"
