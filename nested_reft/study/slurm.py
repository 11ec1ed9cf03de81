"""Slurm before the first job of a study: whether it can run what the jobs ask for, and jobs that an earlier run left.

Slurm accepts some requests that no node can ever satisfy, and a study would wait for such a job without an end.
"""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_json
from nested_reft.records.lock import study_lock

# The longest time that cancelled jobs may take to end, in seconds. Slurm asks them to end and kills them after 30 s.
LONGEST_END = 90.0
# What the plugin of Snakemake says about a job that Slurm has ended or refused.
ENDED = re.compile(r"SLURM status is: '(\w+)'")
REFUSED = re.compile(r"sbatch failed\. The error message was '(.*?)'\.\n", re.S)
STATES = {
    "CANCELLED": "the job was cancelled",
    "NODE_FAIL": "the node of the job failed",
    "OUT_OF_MEMORY": "the job used more memory than it had asked for",
    "TIMEOUT": "the job reached its time limit",
}
IN_PROFILE = "in the profile (docs/how-to/slurm.md)"


class Request(NamedTuple):
    """What a job asks Slurm for. `partition` is empty for the default one; 0 stands for a value that Slurm chooses."""

    rule: str
    partition: str
    gpus: int
    cpus: int
    memory_mb: int
    minutes: int


class Nodes(NamedTuple):
    """Nodes of a partition that are alike. `minutes` is the time limit of the partition, or None without one."""

    partition: str
    is_default: bool
    gpus: int
    cpus: int
    memory_mb: int
    minutes: int | None


def ask(command: str, *options: str) -> list[str]:
    """Return the lines that a command of Slurm prints.

    Raises:
        UserError: Slurm is not installed on this machine, or it does not answer.
    """
    if shutil.which(command) is None:
        raise UserError(
            f"the executor is slurm, but this machine has no command `{command}`; start the study on a node that can "
            "submit jobs, or without the profile"
        )
    try:
        done = subprocess.run([command, *options], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise UserError(f"Slurm does not answer: `{command}` took more than 120 s; try again later") from None
    if done.returncode:
        why = " ".join(done.stderr.split())
        raise UserError(f"Slurm does not answer: `{command}` failed with {why!r}; try again later")
    return done.stdout.splitlines()


def read_nodes() -> list[Nodes]:
    """Return the nodes of all partitions."""
    return [parse_nodes(line) for line in ask("sinfo", "--noheader", "--exact", "--format=%P|%G|%c|%m|%l")]


def parse_nodes(line: str) -> Nodes:
    """Return the nodes in a line of sinfo, such as `gpu*|gpu:a100:4(S:0-1)|64|515000|1-00:00:00`."""
    partition, gres, cpus, memory, limit = line.split("|")
    # `(S:0-1)` names sockets; the commas within the brackets separate no resources
    resources = re.sub(r"\([^)]*\)", "", gres).split(",")
    gpus = sum(int(entry.rpartition(":")[2]) for entry in resources if re.fullmatch(r"gpu(:[^:]+)?:\d+", entry))
    name = partition.removesuffix("*")
    return Nodes(name, name != partition, gpus, int(cpus.rstrip("+")), int(memory.rstrip("+")), parse_limit(limit))


def parse_limit(limit: str) -> int | None:
    """Return a time limit in minutes, from `days-hours:minutes:seconds` without leading parts, or None for none."""
    if not limit[0].isdigit():  # `infinite`, or `n/a`
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = [0, *map(int, clock.split(":"))][-3:]
    return (int(days or 0) * 24 + hours) * 60 + minutes


def request_problems(requests: Iterable[Request], nodes: list[Nodes]) -> Iterator[str]:
    """Yield a sentence for each partition that does not exist, and for each rule and amount that no node has.

    Args:
        requests: what the jobs ask for. Of the jobs of a rule, the one that asks for the most is named.
        nodes: the nodes of Slurm.
    """
    partitions = sorted({node.partition for node in nodes})
    different = list(dict.fromkeys(requests))
    for name in dict.fromkeys(request.partition for request in different):
        if name and name not in partitions:
            yield f"Slurm has no partition {name}, but {', '.join(partitions)}; correct slurm_partition {IN_PROFILE}"
    said = set()
    for request in sorted(different, key=lambda request: request[2:], reverse=True):
        name = request.partition
        found = [node for node in nodes if (node.partition == name if name else node.is_default)]
        # Without a default partition, sbatch says what it needs.
        for unit, sentence in shortages(request, found) if found else ():
            if (request.rule, name, unit) not in said:
                said.add((request.rule, name, unit))
                yield sentence


def shortages(request: Request, nodes: list[Nodes]) -> Iterator[tuple[str, str]]:
    """Yield (unit, sentence) for each amount of a request that no node of its partition has."""
    asks, partition = f"a job of `{request.rule}` asks for", f"partition {nodes[0].partition}"
    amounts = [
        (request.gpus, max(node.gpus for node in nodes), "GPUs", "jobs.gpus"),
        (request.cpus, max(node.cpus for node in nodes), "CPU cores", "jobs.threads"),
        (request.memory_mb, max(node.memory_mb for node in nodes), "MB of memory", f"mem_mb {IN_PROFILE}"),
    ]
    too_much = [entry for entry in amounts if entry[0] > entry[1]]
    for asked, most, unit, key in too_much:
        yield unit, f"{asks} {asked} {unit}, but no node of the {partition} has more than {most}; lower {key}"
    if not too_much and not any(fits(request, node) for node in nodes):
        sentence = (
            f"{asks} {request.gpus} GPUs, {request.cpus} CPU cores and {request.memory_mb} MB of memory, but no node "
            f"of the {partition} has all of them; lower one of them, or choose slurm_partition {IN_PROFILE}"
        )
        yield "all", sentence
    limits = [node.minutes for node in nodes]
    if None not in limits and request.minutes > (most := max(filter(None, limits), default=0)):
        sentence = (
            f"{asks} {request.minutes} minutes, but the {partition} allows {most}; lower runtime {IN_PROFILE}, "
            "since a job resumes after its time limit"
        )
        yield "minutes", sentence


def fits(request: Request, node: Nodes) -> bool:
    """Return whether one node has all that a job asks for."""
    return request.gpus <= node.gpus and request.cpus <= node.cpus and request.memory_mb <= node.memory_mb


def submitted_file(directory: Path, study: str) -> Path:
    """Return the file that keeps the name of the Slurm jobs of the last run of a study in a working directory."""
    return study_lock(directory, study).with_suffix(".slurm")


def write_submitted(directory: Path, study: str, job_name: str, own_job: str | None) -> None:
    """Keep the name that all Slurm jobs of a run have, before the first of them is submitted.

    Args:
        directory: the working directory of the study.
        study: the name of the study.
        job_name: the name of the jobs.
        own_job: the id of the Slurm job in which this Snakemake itself runs, or None outside of Slurm.
    """
    host = socket.gethostname()
    write_json(submitted_file(directory, study), {"job_name": job_name, "host": host, "own_job": own_job})


def jobs_named(job_name: str) -> list[str]:
    """Return the ids of the user's Slurm jobs of this name that have not ended."""
    return ask("squeue", "--me", "--noheader", f"--name={job_name}", "--format=%i")


def has_ended(record: Mapping[str, Any], own_job: str | None) -> bool:
    """Return whether the Snakemake that wrote a record must have ended: it ran here, or in a Slurm job that ended."""
    if record["host"] == socket.gethostname():
        return True
    earlier = record["own_job"]
    return earlier is not None and (
        earlier == own_job or earlier not in ask("squeue", "--me", "--noheader", "--format=%i")
    )


def end_jobs_left(directory: Path, study: str, own_job: str | None) -> list[str]:
    """Cancel the Slurm jobs that an earlier run of a study has left, wait until they have ended, and return their ids.

    A Snakemake that is killed leaves its jobs in Slurm. They must not write the files that the jobs of this run write.
    The caller holds the lock of the study, so that an earlier run on this machine has ended. One on another machine
    may still run, because the lock of that machine may be invisible here.

    Args:
        directory: the working directory of the study.
        study: the name of the study.
        own_job: the id of the Slurm job in which this Snakemake itself runs, or None outside of Slurm.

    Raises:
        UserError: there are jobs of a run on another machine, or cancelled jobs that do not end.
    """
    path = submitted_file(directory, study)
    if not path.exists() or shutil.which("squeue") is None:
        return []
    record = read_json(path)
    job_name = record["job_name"]
    left = jobs_named(job_name)
    if left and not has_ended(record, own_job):
        raise UserError(
            f"the study {study} was started on {record['host']} before, and its Slurm jobs have not ended; when no "
            f"snakemake runs there any more, `scancel --name={job_name}` and start again"
        )
    if left:
        ask("scancel", "--quiet", *left)
    deadline = time.monotonic() + LONGEST_END
    while left and jobs_named(job_name):
        if time.monotonic() > deadline:
            raise UserError(
                f"the cancelled Slurm jobs of an earlier run of the study {study} do not end; start again when "
                f"`squeue --name={job_name}` no longer lists them"
            )
        time.sleep(1.0)
    return left


def why_slurm_ended(message: str) -> str:
    """Return the sentence of Slurm in the plugin's message about a failed job, or an empty text if it has none."""
    if refused := REFUSED.search(message):
        return f"Slurm refused the job: {' '.join(refused[1].replace('sbatch: error: ', '').split())}"
    ended = ENDED.search(message)
    return STATES.get(ended[1], "") if ended else ""
