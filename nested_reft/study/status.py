"""How far a study is, read from its files: which jobs are done, running, failed or waiting, and the time left.

The files say the same while the study runs, after it was interrupted, and before it was started.
"""

from pathlib import Path
from typing import NamedTuple

from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_json
from nested_reft.records.lock import is_locked, study_lock
from nested_reft.study.jobs import Folders, Job, job_paths, read_job
from nested_reft.study.time_left import seconds_left


class Status(NamedTuple):
    """How far a study is. Moments are in seconds since 1970.

    Attributes:
        study: the name of the study.
        folders: where its files are.
        started: the moment at which the Snakemake that runs the study was started, or None if none runs.
        jobs: all jobs of the study.
        seconds_left: the time that the unfinished jobs still need, or None if it cannot be known yet.
        has_report: whether the report is written.
    """

    study: str
    folders: Folders
    started: float | None
    jobs: list[Job]
    seconds_left: float | None
    has_report: bool

    def count(self, *states: str) -> int:
        """Return how many jobs are in one of these states."""
        return sum(job.state in states for job in self.jobs)

    @property
    def is_complete(self) -> bool:
        """Whether all jobs are done and the report is written."""
        return self.has_report and self.count("done") == len(self.jobs)


def started_file(directory: Path, study: str) -> Path:
    """Return the file that keeps the jobs and the settings of a study that was started in a working directory."""
    return study_lock(directory, study).with_suffix(".json")


def write_started(directory: Path, study: Study) -> None:
    """Keep the jobs and the settings of a study that is started now, for its status and its verification."""
    path = started_file(directory, study.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"study": study.study, "jobs": job_paths(study), "settings": study.model_dump(mode="json")})


def last_started(directory: Path) -> tuple[str, list[str]]:
    """Return the name and the jobs of the study that was started last in a working directory.

    Raises:
        UserError: no study was started there.
    """
    files = list(started_file(directory, "*").parent.glob("*.json"))
    if not files:
        raise UserError(
            f"no study was started in {directory.absolute()}; give the file of a study, as in "
            "`nested-reft status config/mine.yaml`, or change to the folder in which the study runs"
        )
    content = read_json(max(files, key=lambda file: file.stat().st_mtime))
    return content["study"], content["jobs"]


def without_outdated(jobs: list[Job]) -> list[Job]:
    """Return the jobs, where an evaluation waits if the model that it evaluates has to be made again."""
    unfinished = {f"evaluate/{job.path}" for job in jobs if job.state != "done"}
    return [Job(job.path, "waiting") if job.path in unfinished and job.state == "done" else job for job in jobs]


def read_status(directory: Path, study: str, paths: list[str], now: float) -> Status:
    """Return how far a study is.

    Args:
        directory: the working directory of the study.
        study: the name of the study.
        paths: the paths of its jobs, as `job_paths` gives them.
        now: the present moment, in seconds since 1970.
    """
    folders = Folders.of(directory, study)
    lock = study_lock(directory, study)
    started = lock.stat().st_mtime if is_locked(lock) else None
    jobs = without_outdated([read_job(folders, path, started) for path in paths])
    has_report = (folders.reports / "findings.rst").exists()
    return Status(study, folders, started, jobs, seconds_left(jobs, now), has_report)


def read_started(directory: Path, study: str, now: float) -> Status:
    """Return how far a study is that was started in this working directory."""
    return read_status(directory, study, read_json(started_file(directory, study))["jobs"], now)
