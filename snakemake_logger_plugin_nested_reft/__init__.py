"""What Snakemake prints while a study runs: a line per finished job, and now and then how far the running jobs are.

Snakemake finds this package by the beginning of its name; `logger: nested-reft` in profiles/default chooses it.
Without the profile, Snakemake prints its own messages. Its log file under .snakemake/log has them in any case.
"""

import re
import sys
import textwrap
import threading
import time
from copy import copy
from logging import LogRecord
from pathlib import Path
from typing import Any, NamedTuple

from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from nested_reft.records.job_logs import INTERRUPTED, last_sentence
from nested_reft.study import status, status_text
from nested_reft.study.jobs import STAGES, Folders, job_name, read_job
from nested_reft.study.slurm import why_slurm_ended

# Messages of Snakemake that say nothing about the study. The hooks onsuccess and onerror print the end of a study.
UNSAID = (
    "Building DAG of jobs",
    "Using shell",
    "Assuming unrestricted shared filesystem",
    "Select jobs to execute",
    "Removing output files of failed job",
    "Exiting because a job execution failed",
    "Shutting down, this might take some time",
    "Complete log(s)",
    "host: ",
    # The plugin for Slurm looks for an account by a command that never works; Slurm then takes the user's default.
    "No SLURM account given",
    "No account was given",
    "Unable to guess SLURM account",
)
AFTER_CTRL_C = "Terminating processes on user request"
RESTARTED = re.compile(r"Trying to restart job (\d+)\.")
UNSAID_EVENTS = (LogEvent.WORKFLOW_STARTED, LogEvent.JOB_STARTED, LogEvent.PROGRESS)
# The longest reason for a job that a dry run prints, in characters.
LONGEST_REASON = 500
# The most running jobs that are named at once, and the time between two such reports. It becomes longer with the time
# that the study has run, up to ten minutes.
MOST_NAMED = 5
SHORTEST_PAUSE, LONGEST_PAUSE = 30.0, 600.0


def shortened(message: Any) -> Any:
    """Return the message about a job of a dry run with a part of its reason, which may list hundreds of files."""
    short = copy(message)
    short.reason = textwrap.shorten(str(message.reason), LONGEST_REASON, placeholder=" ...")
    return short


class RunningJob(NamedTuple):
    """A job that Snakemake has started.

    Attributes:
        study: the name of the study.
        path: the path of the job's log below the logs of the study, without its suffix.
        log: the log file.
        started: when it was started, in seconds since 1970.
    """

    study: str
    path: str
    log: Path
    started: float


class LogHandler(LogHandlerBase):
    """Prints the messages of Snakemake in the words of a study."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Prepare Snakemake's own handler for all other messages, and start the reports on running jobs."""
        settings: Any = self.common_settings
        self.others = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=sys.stdout if settings.stdout else sys.stderr,
            formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
        )
        self.interrupted = False
        self.cores = 1
        self.total = self.done = 0
        self.running: dict[int, RunningJob] = {}
        self.failed: dict[int, RunningJob] = {}
        self.started = self.said = time.time()
        self.closed = threading.Event()
        threading.Thread(target=self.report_running_jobs, daemon=True).start()

    def emit(self, record: LogRecord) -> None:
        """Print a message. The caller holds the lock of the handler, which the reports on running jobs take, too."""
        message: Any = record
        self.interrupted |= str(record.msg).startswith(AFTER_CTRL_C)
        event = getattr(record, "event", None)
        if restarted := RESTARTED.match(str(record.msg)):
            self.restart_job(int(restarted[1]))
            return
        if self.common_settings.dryrun or event not in self.printers:
            if event not in UNSAID_EVENTS and not is_unsaid(record):
                self.others.emit(shortened(message) if event == LogEvent.JOB_INFO else record)
            return
        self.printers[event](self, message)

    def begin(self, message: Any) -> None:
        """Say which jobs will run."""
        counts = {rule: count for rule, count in message.stats.items() if rule not in ("all", "total")}
        self.total = sum(counts.values())
        named = {rule: count for rule, count in counts.items() if rule in STAGES}
        parts = [f"{count} {rule}" for rule, count in named.items()]
        parts += [f"{others} other"] if (others := self.total - sum(named.values())) else []
        cores = f" on {self.cores} cores" if self.cores > 1 else ""
        self.say(f"{self.total} {'jobs' if self.total > 1 else 'job'}{cores}: {', '.join(parts)}")

    def keep_cores(self, message: Any) -> None:
        """Keep the number of cores for the first line."""
        self.cores = getattr(message, "cores", self.cores)

    def start_job(self, message: Any) -> None:
        """Keep a job that starts."""
        if message.log:
            log = Path(message.log[0])
            _, study, *path = log.with_suffix("").parts
            self.running[message.jobid] = RunningJob(study, "/".join(path), log, message.created)

    def finish_job(self, message: Any) -> None:
        """Print a line for a finished job."""
        if (job := self.running.pop(message.job_id, None)) is None:
            return  # the rule `all`
        self.done += 1
        found = status.read_started(Path.cwd(), job.study, time.time())
        self.say(f"{self.count()} {status_text.finished(found, job.path, message.created - job.started)}")

    def fail_job(self, message: Any) -> None:
        """Print the sentence of a failed job and its log."""
        if (job := self.running.pop(message.jobid, None)) is None:
            self.others.emit(message)
            return
        sentence = why_slurm_ended(str(getattr(message, "rule_msg", ""))) or last_sentence(job.log)
        if not self.interrupted and sentence != INTERRUPTED:
            self.done += 1
            self.failed[message.jobid] = job
            self.say(f"{self.count()} failed: {job_name(job.path)}: {sentence} ({job.log})")

    def restart_job(self, jobid: int) -> None:
        """Say that a failed job is started again."""
        if (job := self.failed.pop(jobid, None)) is not None:
            self.done -= 1
            self.say(f"  started again: {job_name(job.path)}")

    def print_error(self, message: Any) -> None:
        """Print an error of Snakemake, unless it repeats the whole command of a failed job."""
        if "CalledProcessError" not in str(message.msg):
            self.others.emit(message)

    printers = {
        LogEvent.RUN_INFO: begin,
        LogEvent.RESOURCES_INFO: keep_cores,
        LogEvent.JOB_INFO: start_job,
        LogEvent.JOB_FINISHED: finish_job,
        LogEvent.JOB_ERROR: fail_job,
        LogEvent.ERROR: print_error,
    }

    def count(self) -> str:
        """Return the number of finished jobs of all, as `[ 7/24]`."""
        return f"[{self.done:{len(str(self.total))}}/{self.total}]"

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=self.others.stream, flush=True)
        self.said = time.time()

    def report_running_jobs(self) -> None:
        """Say now and then how far the running jobs are, until the handler is closed."""
        while not self.closed.wait(1.0):
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, (time.time() - self.started) / 30))
            if self.running and time.time() - self.said >= pause:
                self.acquire()
                try:
                    self.say("\n".join(self.running_lines()))
                finally:
                    self.release()

    def running_lines(self) -> list[str]:
        """Return a line per running job, of at most `MOST_NAMED`."""
        jobs = list(self.running.values())
        lines = []
        for job in jobs[:MOST_NAMED]:
            folders = Folders.of(Path.cwd(), job.study)
            state = read_job(folders, job.path, self.started)
            lines.append(f"  running: {job_name(job.path)}: {status_text.pace_of(folders, state)}")
        return lines + ([f"  and {len(jobs) - MOST_NAMED} more"] if len(jobs) > MOST_NAMED else [])

    def close(self) -> None:
        """End the reports on running jobs."""
        self.closed.set()
        super().close()


def is_unsaid(record: LogRecord) -> bool:
    """Return whether this message of Snakemake says nothing about the study."""
    return str(record.msg).lstrip().startswith(UNSAID)
