"""What Slurm is asked before the first job of a study. Small programs stand for the commands of Slurm."""

import json
import socket
import stat
from pathlib import Path

import pytest

from nested_reft.errors import UserError
from nested_reft.study import slurm
from nested_reft.study.slurm import Nodes, Request, parse_nodes, request_problems, why_slurm_ended

CPU = Nodes("cpu", True, 0, 64, 250_000, None)
GPU = Nodes("gpu", False, 4, 32, 500_000, 1_440)
BIG = Nodes("gpu", False, 0, 128, 2_000_000, 1_440)  # a second kind of node in the same partition


@pytest.fixture()
def fake(tmp_path, monkeypatch):
    """Return a function that puts a shell script under the name of a command of Slurm."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    slurm.submitted_file(tmp_path, "smoke").parent.mkdir(parents=True)  # the lock of the study is there, too

    def write(command: str, script: str) -> None:
        path = tmp_path / "bin" / command
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.mark.parametrize(
    ("line", "nodes"),
    [
        ("main*|(null)|64|250000|infinite", Nodes("main", True, 0, 64, 250_000, None)),
        ("gpu|gpu:a100:4(S:0-1)|32|500000|1-00:00:00", Nodes("gpu", False, 4, 32, 500_000, 1_440)),
        ("mixed|gpu:a100:2(S:0,1),nvme:1,gpu:l4:1|8|1000+|2:30:00", Nodes("mixed", False, 3, 8, 1_000, 150)),
        ("short|gpu:2|4|19284|5:00", Nodes("short", False, 2, 4, 19_284, 5)),
    ],
)
def test_nodes_are_read_from_a_line_of_sinfo(line, nodes):
    assert parse_nodes(line) == nodes


@pytest.mark.parametrize(
    "request_",
    [
        Request("train", "gpu", 4, 32, 500_000, 1_440),
        Request("train", "", 0, 64, 250_000, 100_000),  # the default partition, without a time limit
    ],
)
def test_a_request_for_all_that_a_node_has_is_no_problem(request_):
    assert list(request_problems([request_], [CPU, GPU])) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("train", "gpux", 1, 4, 1, 1), "Slurm has no partition gpux, but cpu, gpu; correct slurm_partition"),
        (
            Request("train", "gpu", 8, 4, 1, 1),
            "`train` asks for 8 GPUs, but no node of the partition gpu has more than",
        ),
        (
            Request("train", "", 1, 4, 1, 1),
            "1 GPUs, but no node of the partition cpu has more than 0; lower jobs.gpus",
        ),
        (Request("sft", "", 0, 65, 1, 1), "asks for 65 CPU cores, but no node of the partition cpu has more than 64"),
        (Request("sft", "", 0, 1, 250_001, 1), "250001 MB of memory, but no node of the partition cpu has more than"),
        (
            Request("sft", "gpu", 0, 1, 1, 1_441),
            "asks for 1441 minutes, but the partition gpu allows 1440; lower runt",
        ),
        (Request("sft", "gpu", 1, 64, 1, 1), "no node of the partition gpu has all of them; lower one of them, or"),
    ],
)
def test_a_request_that_no_node_satisfies_is_one_sentence(request_, words):
    (problem,) = request_problems([request_] * 2, [CPU, GPU, BIG])
    assert words in problem


def test_of_the_jobs_of_a_rule_the_one_that_asks_for_the_most_is_named():
    requests = [Request("train", "gpu", 1, 4, 1, minutes) for minutes in (1_500, 1_600, 1_400)]
    (problem,) = request_problems(requests, [GPU])
    assert "asks for 1600 minutes" in problem


def test_a_partition_that_does_not_exist_is_named_once_for_all_rules():
    requests = [Request(rule, "gpux", 1, 4, 1, 1) for rule in ("sft", "train")]
    assert len(list(request_problems(requests, [CPU]))) == 1


def test_nodes_are_those_that_sinfo_lists(fake):
    fake("sinfo", "echo 'cpu*|(null)|64|250000|infinite'; echo 'gpu|gpu:4|32|500000|1-00:00:00'")
    assert slurm.read_nodes() == [CPU, GPU]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "the executor is slurm, but this machine has no command `sinfo`; start the study on a node that can"),
        ("echo 'slurm_load: Unable to contact' >&2; exit 1", "`sinfo` failed with 'slurm_load: Unable to contact'; "),
    ],
)
def test_a_slurm_that_does_not_answer_is_one_sentence(fake, tmp_path, monkeypatch, script, words):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if script:
        fake("sinfo", script)
    with pytest.raises(UserError) as error:
        slurm.read_nodes()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_an_earlier_run_there_is_nothing_to_end(fake, tmp_path):
    fake("squeue", "echo 7")
    assert slurm.end_jobs_left(tmp_path, "smoke", None) == []


def test_jobs_that_an_earlier_run_has_left_are_cancelled_and_waited_for(fake, tmp_path):
    # The queue has two jobs, which end when they are asked about the second time after they were cancelled.
    fake(
        "squeue",
        '[ "$3" = --name=nested-reft_1 ] || exit 1\n[ -e gone ] || { echo 7; echo 8; }\n[ ! -e sc ] || touch gone',
    )
    fake("scancel", 'echo "$*" >> sc')
    slurm.write_submitted(tmp_path, "smoke", "nested-reft_1", None)
    assert slurm.end_jobs_left(tmp_path, "smoke", None) == ["7", "8"]
    assert (tmp_path / "sc").read_text() == "--quiet 7 8\n" and (tmp_path / "gone").exists()
    assert slurm.end_jobs_left(tmp_path, "other", None) == []


def test_cancelled_jobs_that_do_not_end_stop_the_start(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "LONGEST_END", 0.0)
    fake("squeue", "echo 7")
    fake("scancel", "true")
    slurm.write_submitted(tmp_path, "smoke", "nested-reft_1", None)
    with pytest.raises(UserError, match="when `squeue --name=nested-reft_1` no longer lists them"):
        slurm.end_jobs_left(tmp_path, "smoke", None)


@pytest.mark.parametrize(
    ("earlier", "own", "is_cancelled"),
    [
        (None, None, False),
        ("7", None, False),  # its Snakemake runs in the job 7, which the queue lists
        ("6", None, True),
        ("7", "7", True),  # Slurm has started the job 7 again, and this Snakemake runs in it
    ],
)
def test_jobs_of_a_run_on_another_machine_are_cancelled_only_if_it_has_ended(
    fake, tmp_path, monkeypatch, earlier, own, is_cancelled
):
    fake("squeue", "[ -e cancelled ] || { echo 7; echo 8; }")
    fake("scancel", "touch cancelled")
    slurm.write_submitted(tmp_path, "smoke", "nested-reft_1", earlier)
    record = slurm.submitted_file(tmp_path, "smoke")
    record.write_text(record.read_text().replace(socket.gethostname(), "login2"))
    if is_cancelled:
        assert slurm.end_jobs_left(tmp_path, "smoke", own) == ["7", "8"]
    else:
        sentence = r"started on login2 before, .* `scancel --name=nested-reft_1` and start"
        with pytest.raises(UserError, match=sentence):
            slurm.end_jobs_left(tmp_path, "smoke", own)
    assert Path("cancelled").exists() == is_cancelled


def test_the_record_of_submitted_jobs_is_no_record_of_a_started_study(fake, tmp_path):
    slurm.write_submitted(tmp_path, "smoke", "nested-reft_1", None)
    record = slurm.submitted_file(tmp_path, "smoke")
    assert json.loads(record.read_text()) == {
        "job_name": "nested-reft_1",
        "host": socket.gethostname(),
        "own_job": None,
    }
    assert record.suffix != ".json"  # `nested-reft status` reads these files


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. Detailed failure ...", "the job reached its time limit"),
        ("SLURM-job '7' failed, SLURM status is: 'FAILED'. Detailed failure reason unavailable", ""),
        (
            "SLURM sbatch failed. The error message was 'sbatch: error: Batch job submission failed: Invalid account "
            "or account/partition combination specified'.\n    sbatch call:\n        sbatch --parsable ...",
            "Slurm refused the job: Batch job submission failed: Invalid account or account/partition combination "
            "specified",
        ),
        ("", ""),
    ],
)
def test_the_reason_of_slurm_is_found_in_the_message_of_the_plugin(message, sentence):
    assert why_slurm_ended(message) == sentence
