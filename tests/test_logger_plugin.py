"""What Snakemake prints on the terminal while a study runs."""

import io
import logging
import re
import sys
import time
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

import snakemake_logger_plugin_nested_reft as plugin
from nested_reft.records.job_logs import NO_MESSAGE
from nested_reft.study.status import write_started
from tests.conftest import ROOT, snakemake
from tests.study.tree import CELL, NOW, SMOKE, STEP, TRAIN, Tree

LOG = f"logs/smoke/{TRAIN}.log"


@pytest.fixture()
def tree(tmp_path, monkeypatch):
    write_started(tmp_path, SMOKE)
    monkeypatch.chdir(tmp_path)
    return Tree(tmp_path)


@pytest.fixture()
def terminal(tree, monkeypatch):
    """Return a handler, a function that sends it a message of Snakemake, and the stream that it prints to."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    settings = SimpleNamespace(nocolor=True, stdout=False, quiet=None, show_failed_logs=False, dryrun=False)
    handler = plugin.LogHandler(settings, None)

    def send(event, message="", level=logging.INFO, created=NOW, **fields):
        record = logging.makeLogRecord(
            {"msg": message, "levelno": level, "levelname": logging.getLevelName(level), "created": created, **fields}
        )
        record.event = event
        handler.handle(record)

    yield SimpleNamespace(handler=handler, send=send, printed=stream.getvalue)
    handler.close()


def start(terminal, jobid, log):
    terminal.send(LogEvent.JOB_INFO, f" Rule: x, Jobid: {jobid}", jobid=jobid, log=[log])


def test_jobs_are_counted_at_the_start_and_a_line_each(terminal, tree):
    terminal.send(LogEvent.RESOURCES_INFO, "Provided cores: 2", cores=2)
    terminal.send(LogEvent.RESOURCES_INFO, "Rules claiming more threads will be scaled down.")
    stats = {"prepare_model": 1, "sft": 1, "train": 9, "analyse": 1, "all": 1, "total": 13}
    terminal.send(LogEvent.RUN_INFO, "Job stats: ...", stats=stats)
    start(terminal, 1, "logs/smoke/prepare_model/model~tiny-28.log")
    terminal.send(LogEvent.JOB_FINISHED, job_id=1, created=NOW + 3)
    start(terminal, 2, LOG)
    tree.finish(TRAIN)
    terminal.send(LogEvent.JOB_FINISHED, job_id=2, created=NOW + 31)
    terminal.send(LogEvent.PROGRESS, done=2, total=13)
    terminal.send(LogEvent.JOB_FINISHED, job_id=0)
    assert terminal.printed().splitlines() == [
        "12 jobs on 2 cores: 1 sft, 9 train, 2 other",
        "[ 1/12] prepare model tiny-28: 3 s",
        "[ 2/12] train tiny-28 mixed 15% retrace s0: reward 0.06 -> 0.35, 31 s",
    ]


def test_a_job_that_is_started_again_is_counted_once(terminal, tree):
    terminal.send(LogEvent.RUN_INFO, "Job stats: ...", stats={"train": 1, "all": 1, "total": 2})
    start(terminal, 2, LOG)
    ended = "SLURM-job '7' failed, SLURM status is: 'CANCELLED'. Detailed failure reason unavailable"
    terminal.send(LogEvent.JOB_ERROR, "Error in rule train", logging.ERROR, jobid=2, log=[LOG], rule_msg=ended)
    terminal.send(None, "Trying to restart job 2.")
    start(terminal, 2, LOG)
    tree.finish(TRAIN)
    terminal.send(LogEvent.JOB_FINISHED, job_id=2, created=NOW + 31)
    name = "train tiny-28 mixed 15% retrace s0"
    assert terminal.printed().splitlines()[1:] == [
        f"[1/1] failed: {name}: the job was cancelled ({LOG})",
        f"  started again: {name}",
        f"[1/1] {name}: reward 0.06 -> 0.35, 31 s",
    ]


def test_a_failed_job_is_one_line(terminal, tree):
    start(terminal, 2, LOG)
    tree.log(TRAIN, STEP + "Error: the disk is full\n")
    terminal.send(LogEvent.ERROR, "RuleException:\nCalledProcessError in line 7: Command '...'", logging.ERROR)
    terminal.send(LogEvent.JOB_ERROR, "Error in rule train", logging.ERROR, jobid=2, log=[LOG])
    terminal.send(None, "Exiting because a job execution failed. Look below for error messages", logging.ERROR)
    (line,) = terminal.printed().splitlines()
    assert line == f"[1/0] failed: train tiny-28 mixed 15% retrace s0: the disk is full ({LOG})"


@pytest.mark.parametrize(("log", "said"), [(STEP, True), (STEP + "\nAborted!\n", False)])
def test_jobs_that_ctrl_c_ends_have_not_failed(terminal, tree, log, said):
    tree.log(TRAIN, log)
    start(terminal, 1, LOG)
    terminal.send(LogEvent.JOB_ERROR, jobid=1, log=[LOG])
    assert (NO_MESSAGE in terminal.printed()) == said
    before = terminal.printed()
    terminal.send(None, "Terminating processes on user request, this might take some time.")
    start(terminal, 2, LOG)
    terminal.send(LogEvent.JOB_ERROR, jobid=2, log=[LOG])
    assert terminal.printed() == before + "Terminating processes on user request, this might take some time.\n"


def test_other_messages_of_snakemake_are_printed(terminal):
    terminal.send(None, "Building DAG of jobs...")
    terminal.send(None, "Nothing to be done (all requested files are present and up to date).")
    terminal.send(LogEvent.ERROR, "LockException:\nDirectory cannot be locked.", logging.ERROR)
    printed = terminal.printed()
    assert "Building" not in printed
    assert "Nothing to be done" in printed and "Directory cannot be locked." in printed


def test_running_jobs_are_named_with_their_steps(terminal, tree, monkeypatch):
    monkeypatch.setattr(plugin, "SHORTEST_PAUSE", 0.0)
    tree.begin(TRAIN)
    with tree.locked(tree.folders.results / TRAIN / ".lock"):
        start(terminal, 2, LOG)
        deadline = time.monotonic() + 10
        while "running" not in terminal.printed() and time.monotonic() < deadline:
            time.sleep(0.05)
    line = terminal.printed().splitlines()[0]
    assert line == "  running: train tiny-28 mixed 15% retrace s0: step 12/40, reward 0.45, 200 tok/s"


def test_of_many_running_jobs_some_are_named(terminal):
    for jobid in range(plugin.MOST_NAMED + 2):
        start(terminal, jobid, f"logs/smoke/sft/{CELL}/seed~{jobid}.log")
    with terminal.handler.lock:
        lines = terminal.handler.running_lines()
    assert len(lines) == plugin.MOST_NAMED + 1
    assert lines[-1] == "  and 2 more"


def test_the_terminal_of_the_smoke_study(smoke_study):
    lines = (smoke_study / "terminal.txt").read_text().splitlines()
    start = lines.index("17 jobs on 4 cores: 6 evaluate, 1 measure_speed, 1 sft, 4 train, 5 other")
    finished = [line for line in lines[start:] if line.startswith("[")]
    assert [line.split("]")[0] for line in finished] == [f"[{number:2}/17" for number in range(1, 18)]
    pattern = (
        r"\[.*\] train tiny-28 mixed 15% retrace s0: reward [\d.]+ -> [\d.]+, \d+ (s|min)(; about \d+ (s|min) left)?"
    )
    assert sum(bool(re.fullmatch(pattern, line)) for line in finished) == 1
    assert lines.index("The study 'smoke' is complete.") > lines.index(finished[-1])
    assert max(map(len, lines)) < 120


def test_a_part_of_a_study_is_not_called_complete_and_plain_messages_are_an_option(tmp_path):
    part = ["--configfile", str(ROOT / "config/smoke.yaml"), "--until", "prepare_benchmarks"]
    done = snakemake(tmp_path, *part)
    assert done.returncode == 0
    assert "[1/1] prepare benchmarks: " in done.stderr
    assert "The requested part of the study 'smoke' is complete." in done.stderr
    assert "The study 'smoke' is complete." not in done.stderr
    (tmp_path / "results/smoke/data/benchmarks.jsonl").unlink()
    plain = snakemake(tmp_path, *part, "--workflow-profile", "none")
    assert plain.returncode == 0
    assert "Preparing the benchmarks" in plain.stderr
    assert "The requested part of the study 'smoke' is complete." in plain.stderr
