"""The status of a study, read from a made-up folder tree."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.records.job_logs import NO_MESSAGE
from nested_reft.study.jobs import job_name, job_paths, read_job
from nested_reft.study.status import last_started, read_status, write_started
from nested_reft.study.status_text import end_of_failures, finished, render
from tests.conftest import ROOT, TINY
from tests.study.tree import CELL, NOW, SETTINGS, SMOKE, STEP, TRAIN, Tree


@pytest.fixture()
def tree(tmp_path):
    return Tree(tmp_path)


def test_the_jobs_of_a_study_are_those_of_the_workflow():
    paths = job_paths(SMOKE)
    assert len(paths) == len(set(paths)) == 1 + 1 + 3 + 5
    assert [job_name(path) for path in paths] == [
        "measure speed tiny-28",
        "sft tiny-28 mixed s0",
        "train tiny-28 mixed baseline s0",
        "train tiny-28 mixed 15% base s0",
        "train tiny-28 mixed 15% retrace s0",
        "evaluate tiny-28 pretrained",
        "evaluate tiny-28 mixed sft s0",
        "evaluate tiny-28 mixed baseline s0",
        "evaluate tiny-28 mixed 15% base s0",
        "evaluate tiny-28 mixed 15% retrace s0",
    ]


@pytest.mark.parametrize("written", ["", "s\th:m:s\n"])
def test_a_job_whose_times_are_being_written_is_done_without_a_time(written, tree):
    tree.finish(TRAIN)
    assert read_job(tree.folders, TRAIN, NOW).seconds == 30
    (tree.folders.times / f"{TRAIN}.tsv").write_text(written)
    job = read_job(tree.folders, TRAIN, NOW)
    assert (job.state, job.ended, job.seconds) == ("done", None, None)
    assert "done" in render(read_status(tree.directory, "smoke", job_paths(SMOKE), NOW), NOW)


def test_a_study_without_a_warm_up_has_no_job_for_it(tree):
    without = parse_settings(Study, SETTINGS | {"sft": SETTINGS["sft"] | {"num_train_epochs": 0}})
    assert job_paths(without) == [path for path in job_paths(SMOKE) if "sft/" not in path]
    model = SETTINGS["models"]["tiny-28"] | {"sft_checkpoint": str(TINY)}
    own = parse_settings(Study, SETTINGS | {"models": {"tiny-28": model}})
    assert job_paths(own) == [path for path in job_paths(SMOKE) if not path.startswith("sft/")]
    text = render(read_status(tree.directory, "smoke", job_paths(own), NOW), NOW)
    assert ["sft s0", "waiting"] in [re.split(r"  +", line.strip()) for line in text.splitlines()]


def test_an_unusual_ratio_and_border_are_in_the_name():
    assert job_name("train/model~m/dataset~d/skip_ratio~0.125/border~2/mitigation~is/seed~3").endswith(
        "m d 12.5% border 2 is s3"
    )


def test_before_the_start_every_job_waits(tree):
    status = tree.status()
    assert {job.state for job in status.jobs} == {"waiting"}
    text = render(status, NOW)
    assert text.startswith("smoke: not started, 10 jobs\n")
    assert "--configfile" in text.splitlines()[-1]


def test_a_running_study(tree):
    tree.finish("evaluate/pretrained/model~tiny-28", seconds=10, at=NOW + 10)
    tree.finish(f"sft/{CELL}/seed~0", seconds=20, at=NOW + 30)
    tree.begin(TRAIN, at=NOW + 30)
    with tree.runs(), tree.locked(tree.folders.results / TRAIN / ".lock", NOW + 30):
        status = tree.status(NOW + 60)
    states = {job_name(job.path): job.state for job in status.jobs}
    assert states["train tiny-28 mixed 15% retrace s0"] == "running"
    assert states["evaluate tiny-28 mixed 15% retrace s0"] == "waiting"
    # 30 s for 12 of 40 steps are 100 s for a training; 70 s are left of one, two follow, and four evaluations of 10 s.
    assert status.seconds_left == pytest.approx(70 + 200 + 40)
    text = render(status, NOW + 60)
    headline = "smoke: runs for 60 s, 2 of 10 jobs done, 1 running; about 5 min left"
    assert text.splitlines()[0] == headline
    table = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    assert ["sft s0", "loss 0.29 -> 0.03", "waiting"] in table
    assert ["15% retrace s0", "step 12/40, reward 0.45, 200 tok/s", "waiting"] in table
    assert max(map(len, text.splitlines())) <= 80


def test_a_job_that_imports_its_libraries_is_running(tree):
    tree.log(TRAIN, "", at=NOW + 5)
    with tree.runs():
        job = read_job(tree.folders, TRAIN, NOW)
        assert (job.state, job.started) == ("running", NOW + 5)
        assert "15% retrace s0  starting " in render(tree.status(NOW + 9), NOW + 9)
    assert read_job(tree.folders, TRAIN, None).state == "stopped"


@pytest.mark.parametrize(
    "end", ["\nAborted!\n", "Traceback (most recent call last):\n  File\nKeyboardInterrupt\n", ""], ids=str.split
)
def test_after_ctrl_c_a_job_is_stopped_and_waits_for_its_turn_after_the_next_start(tree, end):
    tree.begin(TRAIN, log=STEP + end)
    status = tree.status()
    (job,) = [job for job in status.jobs if job.path == TRAIN]
    assert job.state == "stopped"
    text = render(status, NOW)
    assert text.startswith("smoke: does not run, 0 of 10 jobs done, 1 stopped; time left not known yet\n")
    assert "  15% retrace s0  stopped at step 12/40" in text
    assert text.endswith("again to go on; finished jobs are kept.")
    with tree.runs(since=NOW + 100):
        assert read_job(tree.folders, TRAIN, NOW + 100).state == "waiting"


def test_a_failed_job_is_shown_with_its_sentence_and_its_log(tree):
    tree.begin(TRAIN, log=STEP + "Error: the model has no tokenizer\n", at=NOW + 1)
    for started in (NOW, None):  # while the study goes on, and later
        job = read_job(tree.folders, TRAIN, started)
        assert (job.state, job.sentence) == ("failed", "the model has no tokenizer")
    lines = render(tree.status(), NOW).splitlines()
    assert "1 failed" in lines[0]
    start = lines.index("failed:")
    assert lines[start + 1 : start + 3] == [
        "  train tiny-28 mixed 15% retrace s0: the model has no tokenizer",
        f"    {tree.folders.logs}/{TRAIN}.log",
    ]


def test_a_job_that_was_killed_while_the_study_goes_on_has_failed(tree):
    tree.begin(TRAIN, at=NOW + 1)
    job = read_job(tree.folders, TRAIN, NOW)
    assert (job.state, job.sentence) == ("failed", NO_MESSAGE)


def test_an_evaluation_of_a_model_that_has_to_be_made_again_waits(tree):
    tree.finish(f"evaluate/{TRAIN}")
    assert tree.status().count("done") == 0
    tree.finish(TRAIN)
    assert tree.status().count("done") == 2


def test_a_complete_study(tree):
    for path in job_paths(SMOKE):
        tree.finish(path)
    assert render(tree.status(), NOW).startswith("smoke: does not run, 10 of 10 jobs done; about 0 s left")
    tree.folders.reports.mkdir(parents=True)
    (tree.folders.reports / "findings.rst").touch()
    text = render(tree.status(), NOW)
    assert text.startswith("smoke: complete, 10 jobs\n")
    assert "  15% retrace s0  reward 0.06 -> 0.35  accuracy 91.2%" in text
    assert text.endswith(f"report: {tree.folders.reports}/")


@pytest.fixture()
def large():
    """Return a study with 6,000 trainings."""
    changes = {
        "skip_ratio": [0.05, 0.1, 0.15],
        "mitigation": ["base", "practical", "retrace"],
        "seed": list(range(600)),
    }
    return parse_settings(Study, SETTINGS | {"grid": SETTINGS["grid"] | changes})


def test_a_large_study_is_counted_by_cell_and_reads_few_files(tree, large, monkeypatch):
    paths = job_paths(large)
    assert len(paths) == 600 * (1 + 10 + 1 + 10) + 1 + 1
    for path in [path for path in paths if path.endswith("seed~0")]:
        tree.finish(path)
    opened = []
    original = os.open

    def counted(path, *arguments, **options):
        opened.append(path)
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "open", counted)
    read = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read.append(path) or read_text(path))
    status = read_status(tree.directory, "smoke", paths, NOW)
    text = render(status, NOW)
    assert len(opened) <= len(paths) + 1  # a lock per job, and that of the study
    assert len(read) == status.count("done") == 22
    assert len(text.splitlines()) < 12
    assert re.search(r"tiny-28 mixed +1/600  10/6000  11/6600", text)


def test_failures_of_a_large_study_are_listed_up_to_ten(tree, large):
    paths = [path for path in job_paths(large) if path.startswith("train")]
    for path in paths[:12]:
        tree.log(path, "Error: no\n")
    with tree.locked(tree.folders.results / paths[20] / ".lock"):
        tree.log(paths[20], STEP)
        text = render(read_status(tree.directory, "smoke", paths, NOW), NOW)
    assert text.count(": no\n") == 10
    assert "\n  and 2 more\n" in text
    assert f"\nrunning:\n  {job_name(paths[20])}: step 12/40\n" in text
    assert "5988/" not in text and "0/6000, 1 running, 12 failed" in text


def test_without_a_file_the_study_that_was_started_last_is_shown(tmp_path, monkeypatch):
    write_started(tmp_path, SMOKE)
    other = SMOKE.model_copy(update={"study": "other"})
    write_started(tmp_path, other)
    later = time.time() + 10
    os.utime(tmp_path / ".snakemake/nested-reft/other.json", (later, later))
    assert last_started(tmp_path) == ("other", job_paths(other))
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["status"])
    assert shown.exit_code == 0 and shown.stdout.startswith("other: not started, 10 jobs\n")
    named = CliRunner().invoke(app, ["status", str(ROOT / "config/smoke.yaml")])
    assert named.exit_code == 0 and named.stdout.startswith("smoke: not started, 10 jobs\n")


def test_a_folder_in_which_nothing_was_started_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no study was started in .*; give the file of a study"):
        last_started(tmp_path)


def test_watch_shows_the_status_until_the_study_is_complete(tree, monkeypatch):
    write_started(tree.directory, SMOKE)
    monkeypatch.chdir(tree.directory)

    def finish_instead(seconds):
        for path in job_paths(SMOKE):
            tree.finish(path)
        tree.folders.reports.mkdir(parents=True)
        (tree.folders.reports / "findings.rst").touch()

    monkeypatch.setattr(time, "sleep", finish_instead)
    shown = CliRunner().invoke(app, ["status", "--watch"])
    assert shown.exit_code == 0
    assert [line for line in shown.stdout.splitlines() if line.startswith("smoke:")] == [
        "smoke: not started, 10 jobs",
        "smoke: complete, 10 jobs",
    ]


def test_the_status_of_the_finished_smoke_study(smoke_study, tmp_path):
    shutil.copytree(smoke_study, tmp_path / "study")
    name, paths = last_started(tmp_path / "study")
    assert (name, len(paths)) == ("smoke", 1 + 1 + 4 + 6)
    status = read_status(tmp_path / "study", name, paths, time.time())
    assert status.is_complete and all(job.seconds for job in status.jobs)
    assert render(status, time.time()).startswith("smoke: complete, 12 jobs\n")


def test_the_line_about_a_finished_job_has_its_result_its_time_and_the_time_left(tree):
    tree.finish("evaluate/pretrained/model~tiny-28", seconds=10)
    tree.finish(f"sft/{CELL}/seed~0", seconds=20)
    path = "evaluate/pretrained/model~tiny-28"
    assert finished(tree.status(), path, 10.2) == "evaluate tiny-28 pretrained: accuracy 91.2%, 10 s"
    tree.finish(TRAIN, seconds=70)
    assert finished(tree.status(), TRAIN, 200) == (
        "train tiny-28 mixed 15% retrace s0: reward 0.06 -> 0.35, 3 min; about 2 min left"
    )
    assert finished(tree.status(), "prepare_model/model~tiny-28", 2) == "prepare model tiny-28: 2 s"


def test_the_end_of_an_unfinished_study_names_each_failure_and_what_to_do(tmp_path):
    log = tmp_path / "job.log"
    log.write_text("Error: the disk is full\n")
    assert end_of_failures("mine", [("train a", log)], interrupted=False).splitlines() == [
        "",
        "The study 'mine' is not complete: 1 of its jobs failed.",
        "  train a: the disk is full",
        f"    {log}",
        "Remove the cause and run the same command to go on; finished jobs are kept.",
    ]
    interrupted = end_of_failures("mine", [], interrupted=True).splitlines()
    assert interrupted == ["", "The study 'mine' was interrupted; run the same command to go on."]
