"""GPUs: which ones a process may use, and leases that never give one to two jobs. Processes are real, GPUs pretend."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nested_reft.errors import UserError
from nested_reft.model import devices
from nested_reft.model.devices import Device, leased_devices, num_gpus, parse_devices, too_few_gpus
from tests.conftest import ROOT

TWO = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-7f57f032-34ab-a064-c37c-7a4f75601cc5)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-8c7c9c30-f12f-20bf-e14e-d3c4c965af32)
"""
FIRST, SECOND = "GPU-7f57f032-34ab-a064-c37c-7a4f75601cc5", "GPU-8c7c9c30-f12f-20bf-e14e-d3c4c965af32"
# The first GPU is divided into two parts.
DIVIDED = TWO.replace(
    "GPU 1",
    "  MIG 2g.20gb     Device  0: (UUID: MIG-377e0049-554c-540b-93c6-d0976f8426cb)\n"
    "  MIG 1g.10gb     Device  1: (UUID: MIG-f39aa248-6f1b-5769-b119-8d650bb34b27)\nGPU 1",
)
PARTS = ["MIG-377e0049-554c-540b-93c6-d0976f8426cb", "MIG-f39aa248-6f1b-5769-b119-8d650bb34b27"]

HOLD = """
import os, sys, time
from pathlib import Path
from nested_reft.model import devices
devices.LEASES = Path(sys.argv[1]) / "leases"
devices.SECONDS_BETWEEN_ATTEMPTS = 0.02
with devices.leased_devices(int(sys.argv[2])) as leases:
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    {0}
"""


@contextmanager
def job(folder: Path, visible: str, count: int = 1, then: str = "input()") -> Iterator[subprocess.Popen[str]]:
    """Run a process that leases devices, prints their names and runs a statement; kill it at the end."""
    command = [sys.executable, "-c", HOLD.format(then), str(folder), str(count)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "PATH": str(folder)}  # a PATH without nvidia-smi
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("visible", "listing", "expected"),
    [
        (None, "", []),
        (None, TWO, [("0", FIRST), ("1", SECOND)]),
        ("1", TWO, [("1", SECOND)]),
        ("1, 0", TWO, [("1", SECOND), ("0", FIRST)]),
        (SECOND, TWO, [(SECOND, SECOND)]),
        ("GPU-8c7c", TWO, [("GPU-8c7c", SECOND)]),
        ("0,0", TWO, [("0", FIRST), ("0", f"{FIRST}.2")]),
        ("", TWO, []),
        ("-1", TWO, []),
        ("0,7,1", TWO, [("0", FIRST)]),
        ("NoDevFiles", "", []),
        (None, DIVIDED, [*((part, part) for part in PARTS), ("1", SECOND)]),
        ("0", DIVIDED, [(part, part) for part in PARTS]),
        (PARTS[1], DIVIDED, [(PARTS[1], PARTS[1])]),
        (f"MIG-{FIRST}/1/0", DIVIDED, [(f"MIG-{FIRST}/1/0", f"MIG-{FIRST}-1-0")]),
        ("0,1", "", [("0", "job-5-0"), ("1", "job-5-1")]),
    ],
)
def test_the_devices_are_those_that_cuda_would_show(visible, listing, expected):
    assert parse_devices(visible, listing, "job-5-") == [Device(*pair) for pair in expected]


def test_an_index_and_a_uuid_of_one_device_are_one_lease():
    (by_index,), (by_uuid,) = parse_devices("1", TWO), parse_devices(SECOND, TWO)
    assert by_index.lock == by_uuid.lock


def test_nvidia_smi_runs_once_in_a_process(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\necho '{TWO}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.list_gpus.cache_clear()
    try:
        for visible, number in (("", 0), ("1", 1), ("0,1", 2)):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            assert len(devices.visible_devices()) == number
    finally:
        devices.list_gpus.cache_clear()
    assert (tmp_path / "calls").read_text() == "x\n"


def test_more_gpus_than_there_are_is_one_sentence(monkeypatch):
    monkeypatch.setattr(devices, "list_gpus", lambda: "")  # a machine without nvidia-smi
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listed = parse_devices(None, TWO)
    assert too_few_gpus(4, listed) == "jobs.gpus is 4, but this machine has 2 GPUs; set jobs.gpus to at most 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "pretend,pretend")
    assert num_gpus(devices.visible_devices()) == 1  # two jobs may share it, but one job gets no second GPU
    with pytest.raises(UserError, match=r"jobs\.gpus is 2, but CUDA_VISIBLE_DEVICES 'pretend,pretend' allows 1 GPU;"):
        leased_devices(2).__enter__()


def test_four_jobs_on_two_devices_never_share_one(tmp_path):
    """Each job notes when it has its device and when it gives it back."""
    note = "print(time.monotonic(), {what!r}, os.environ['CUDA_VISIBLE_DEVICES'], file=open({file!r}, 'a'))"
    start, end = (note.format(what=what, file=str(tmp_path / "notes")) for what in ("start", "end"))
    with ExitStack() as stack:
        jobs = [stack.enter_context(job(tmp_path, "a,b", then=f"{start}; time.sleep(0.3); {end}")) for _ in range(4)]
        for one in jobs:
            assert one.wait(60) == 0, one.stderr.read()
    notes = sorted((tmp_path / "notes").read_text().splitlines())
    in_use: list[list[str]] = [[]]
    for _, what, name in map(str.split, notes):
        in_use.append([*in_use[-1], name] if what == "start" else [one for one in in_use[-1] if one != name])
    assert len(notes) == 8
    assert all(len(set(names)) == len(names) for names in in_use)
    assert max(map(len, in_use)) == 2


def test_a_killed_job_frees_its_device(tmp_path):
    with job(tmp_path, "a") as holder:
        assert holder.stdout.readline() == "a\n"
        with job(tmp_path, "a") as waiting:
            assert f"in use: a by process {holder.pid} of user {os.getuid()}\n" in waiting.stderr.readline()
            time.sleep(0.2)
            assert waiting.poll() is None
            holder.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            assert waiting.stdout.readline() == "a\n"
            assert time.monotonic() - killed < 5


def test_a_process_that_inherits_a_lease_keeps_it(tmp_path):
    """Ranks that outlive the process that started them still use the device."""
    start = "import subprocess; print(subprocess.Popen(['sleep', '60'], {0}).pid, flush=True); input()"
    for inherit, is_kept in (("pass_fds=leases.values()", True), ("", False)):
        with job(tmp_path, "a", then=start.format(inherit).replace("'sleep'", "'/bin/sleep'")) as launcher:
            assert launcher.stdout.readline() == "a\n"
            rank = int(launcher.stdout.readline())
            launcher.kill()
            launcher.wait()
            try:
                with job(tmp_path, "a") as other:
                    first_line = (other.stderr if is_kept else other.stdout).readline()
                    assert ("in use" in first_line) == is_kept, first_line
            finally:
                os.kill(rank, signal.SIGKILL)


def test_jobs_that_need_two_of_two_devices_run_one_after_the_other(tmp_path):
    with ExitStack() as stack:
        jobs = [stack.enter_context(job(tmp_path, order, 2, "time.sleep(0.2)")) for order in ("a,b", "b,a") * 2]
        assert [one.wait(60) for one in jobs] == [0, 0, 0, 0]
        assert [one.stdout.read() for one in jobs] == ["a,b\n", "b,a\n"] * 2


def test_a_job_that_waits_for_two_devices_keeps_none(tmp_path):
    with job(tmp_path, "a,b") as holder, ExitStack() as stack:
        assert holder.stdout.readline() == "a\n"
        both = stack.enter_context(job(tmp_path, "a,b", 2))
        assert "waiting for 2 of the GPUs" in both.stderr.readline()
        with job(tmp_path, "a,b") as other:
            assert other.stdout.readline() == "b\n"
            holder.kill()
            time.sleep(0.2)
            assert both.poll() is None
        assert both.stdout.readline() == "a,b\n"


def test_a_device_that_is_listed_twice_is_leased_twice(tmp_path):
    with job(tmp_path, "a,a") as first, job(tmp_path, "a,a") as second:
        assert first.stdout.readline() == second.stdout.readline() == "a\n"
        with job(tmp_path, "a,a") as third:
            assert "in use: a by process " in third.stderr.readline()


def test_a_lease_shows_cuda_its_device_and_no_other_one(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "LEASES", tmp_path / "leases")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    for _ in range(2):
        with leased_devices() as leases:
            assert list(leases) == ["a"] and os.environ["CUDA_VISIBLE_DEVICES"] == "a"
            assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "a,b" and "CUDA_DEVICE_ORDER" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with leased_devices() as leases:
        assert leases == {} and os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_all_users_of_a_machine_can_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "LEASES", tmp_path / "leases")
    before = os.umask(0o077)
    try:
        devices.release(devices.try_to_lease([Device("a", "a")], 1))
    finally:
        os.umask(before)
    assert (tmp_path / "leases").stat().st_mode & 0o7777 == 0o1777
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "leases").iterdir()} == {
        "door": 0o666,
        "a.lock": 0o666,
    }
