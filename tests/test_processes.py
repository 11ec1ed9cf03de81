"""Several processes for one job: how ranks are started, how they end together, and how an evaluation is divided."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from nested_reft import processes
from nested_reft.cli.options import run_ranks
from nested_reft.config.stage_settings import PrepareBenchmarks
from nested_reft.errors import UserError
from tests.conftest import ROOT
from tests.model.test_devices import job

SETTINGS = PrepareBenchmarks(benchmarks={})


@pytest.mark.parametrize(
    ("distributed", "num_processes", "world_size", "words"),
    [
        ("none", 2, "1", "--num-processes is 2, but --distributed is none"),
        ("ddp", 1, "1", "--distributed is ddp with one process, which has nothing to divide"),
        ("none", 1, "2", "WORLD_SIZE is 2, but --num-processes is 1; start the command without torchrun"),
        ("ddp", 4, "2", "WORLD_SIZE is 2, but --num-processes is 4"),
    ],
)
def test_contradictions_are_refused(distributed, num_processes, world_size, words, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(UserError, match=words):
        run_ranks(distributed, num_processes, SETTINGS, tmp_path)


def test_one_process_and_a_rank_do_the_work_themselves(monkeypatch, tmp_path):
    assert not run_ranks("none", 1, SETTINGS, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not run_ranks("ddp", 2, SETTINGS, tmp_path)


def test_ranks_get_the_command_with_its_settings_as_text(monkeypatch, tmp_path):
    """A rank cannot read standard input, which the command has read."""
    started = []
    monkeypatch.setattr(sys, "argv", ["nested-reft", "train", "--settings", "-"])
    monkeypatch.setattr(processes, "launch", lambda *arguments: started.append(arguments) or len(started) - 1)
    assert run_ranks("ddp", 2, SETTINGS, tmp_path)
    assert started == [(2, ["train", "--settings", "-", "--settings", '{"benchmarks": {}}'])]
    with pytest.raises(typer.Exit) as end:  # a rank has failed and has said why
        run_ranks("ddp", 2, SETTINGS, tmp_path)
    assert end.value.exit_code == 1


@pytest.fixture()
def ranks(tmp_path, monkeypatch):
    """Return a function that launches two ranks of a shell script, and returns the exit status."""

    def launch(script: str) -> int:
        executable = tmp_path / "rank.sh"
        executable.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        executable.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(executable))
        monkeypatch.setenv("OMP_NUM_THREADS", "6")
        return processes.launch(2, ["train"])

    return launch


def test_ranks_share_the_threads_and_know_each_other(ranks, tmp_path):
    assert ranks('echo "$RANK $LOCAL_RANK $WORLD_SIZE $OMP_NUM_THREADS $*" > seen$RANK') == 0
    assert [(tmp_path / f"seen{rank}").read_text() for rank in (0, 1)] == [
        f"{rank} {rank} 2 3 -m nested_reft train\n" for rank in (0, 1)
    ]


def test_a_rank_that_fails_ends_the_others_and_gives_its_status(ranks, tmp_path):
    started = time.monotonic()
    assert ranks('if [ "$RANK" = 1 ]; then exit 3; fi; echo $$ > pid; exec sleep 60') == 3
    assert time.monotonic() - started < 30 and not is_alive(int((tmp_path / "pid").read_text()))


def test_a_rank_that_is_killed_is_named(ranks, capfd):
    assert ranks('if [ "$RANK" = 1 ]; then kill -9 $$; fi; exec sleep 60') == 1
    assert "Error: rank 1 was ended by SIGKILL; SIGKILL often means too little memory" in capfd.readouterr().err


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 128 + 15), (signal.SIGUSR1, 128 + 10), (signal.SIGKILL, -9)]
)
def test_a_signal_to_the_command_ends_all_ranks(sent, status, tmp_path):
    """SIGTERM and SIGUSR1 are passed on; after SIGKILL, which cannot be, the kernel ends the ranks."""
    program = (
        "import os, pathlib, sys, time\nfrom nested_reft import processes\n"
        "if 'RANK' in os.environ:\n"
        "    processes.end_with_launcher()\n"
        "    pathlib.Path('pid' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "sys.executable = './rank.sh'\n"
        "sys.exit(processes.launch(2, []))\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "rank.sh").write_text(f"#!/bin/sh\nexec {sys.executable} program.py\n")
    (tmp_path / "rank.sh").chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
    files = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    command.send_signal(sent)
    assert command.wait(timeout=60) == status
    wait_until(lambda: not any(is_alive(int(file.read_text())) for file in files))


def test_a_rank_whose_command_has_ended_ends_at_once():
    """It started when its command was killed, and would compute on devices that another job can lease."""
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0", processes.LAUNCHER: "1"}
    program = "from nested_reft import processes\nprocesses.end_with_launcher()\nprint('computes')"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr


TWO_RANKS = """
import os, sys, time
from pathlib import Path
from torch.multiprocessing import _prctl_pr_set_pdeathsig
from nested_reft import processes
from nested_reft.model import devices
devices.LEASES = Path("leases").resolve()
if "RANK" in os.environ:
    processes.end_with_launcher()
    _prctl_pr_set_pdeathsig(0)  # a rank that does not end
    Path("pid" + os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(60)
else:
    with devices.leased_devices(2) as leases:
        os.environ[devices.LEASED] = devices.lock_paths(leases)
        sys.executable = "./rank.sh"
        processes.launch(2, [])
"""


def test_ranks_that_outlive_their_command_keep_its_devices(tmp_path):
    """The devices are pretended. The memory of a killed rank on a GPU is freed some time after its command ends."""
    (tmp_path / "program.py").write_text(TWO_RANKS)
    (tmp_path / "rank.sh").write_text(f"#!/bin/sh\nexec {sys.executable} program.py\n")
    (tmp_path / "rank.sh").chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "a,b"}
    files = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    with subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment) as command:
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        command.kill()
    with job(tmp_path, "a,b", count=2, then="print('leased', file=sys.stderr, flush=True); input()") as other:
        assert f"in use: a by process {command.pid} " in other.stderr.readline()
        for file in files:
            assert other.poll() is None and not select.select([other.stdout], [], [], 0.5)[0]
            os.kill(int(file.read_text()), signal.SIGKILL)
        assert other.stdout.readline() == "a,b\n"


@pytest.mark.parametrize(
    ("rank", "error", "sentence", "status", "written"),
    [
        ("0", UserError("no data"), "no data", 2, "Error: no data\n"),
        ("1", UserError("no data"), "no data", 2, "rank 1: Error: no data\n"),
        ("1", RuntimeError("broken"), None, 1, "rank 1: RuntimeError: broken\n"),
    ],
)
def test_the_error_of_another_rank_names_it(rank, error, sentence, status, written, monkeypatch, capsys):
    slept = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(SystemExit) as end:
        processes.end_with_error(error, sentence, status)
    assert (end.value.code, capsys.readouterr().err) == (status, written)
    assert (slept[0] == 0) == (rank == "0"), "ranks that fail because of rank 0 are ended before they report"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_merge_in_order(count, monkeypatch):
    rows = list(range(4))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shares = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(processes.share_of(rows))
    assert sorted(row for share in shares for row in share) == rows and processes.merge_shares(shares) == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
