"""The status of a study as text: a summary, a table, and the failed jobs with their sentences."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from nested_reft.records.job_logs import last_sentence
from nested_reft.records.progress import duration
from nested_reft.study.jobs import STAGES, Job, cell_name, job_name, pace_of, result_of, run_name
from nested_reft.study.status import Status

# A study with more jobs is shown as counts per cell.
MOST_JOBS = 60
# The largest number of running and of failed jobs that are listed.
MOST_LISTED = 10


def render(status: Status, now: float) -> str:
    """Return the status of a study as text of about 80 columns."""
    small = len(status.jobs) <= MOST_JOBS
    lines = [headline(status, now), "", *(job_table(status) if small else cell_table(status))]
    running = [] if small else [job for job in status.jobs if job.state == "running"]
    failed = [job for job in status.jobs if job.state == "failed"]
    lines += listed("running", [[f"  {job_name(job.path)}: {pace_of(status.folders, job)}"] for job in running])
    lines += listed("failed", [failure(status, job) for job in failed])
    if advice := what_to_do(status):
        lines += ["", advice]
    return "\n".join(lines)


def headline(status: Status, now: float) -> str:
    """Return the summary: whether the study runs, the number of jobs in each state, and the time left."""
    if status.is_complete:
        return f"{status.study}: complete, {len(status.jobs)} jobs"
    if status.started is None and status.count("waiting") == len(status.jobs):
        return f"{status.study}: not started, {len(status.jobs)} jobs"
    parts = ["does not run" if status.started is None else f"runs for {duration(now - status.started)}"]
    parts.append(f"{status.count('done')} of {len(status.jobs)} jobs done")
    parts += [f"{status.count(state)} {state}" for state in ("running", "failed", "stopped") if status.count(state)]
    return f"{status.study}: {', '.join(parts)}; {time_left(status)}"


def time_left(status: Status) -> str:
    """Return the time left in words."""
    if status.seconds_left is None:
        return "time left not known yet"
    return f"about {duration(status.seconds_left)} left"


def what_to_do(status: Status) -> str:
    """Return what the user can do next, or an empty text while the study runs or when it is complete."""
    if status.is_complete:
        return f"report: {status.folders.reports}/"
    if status.started is not None:
        return ""
    if status.count("waiting") == len(status.jobs):
        return "`snakemake --cores all --configfile` with the file of the study starts it."
    return "Run the command that started the study again to go on; finished jobs are kept."


def job_table(status: Status) -> list[str]:
    """Return a row per product and cell: its warm-up or training, and its evaluation."""
    jobs = {job.path: job for job in status.jobs}
    products = [job.path.removeprefix("evaluate/") for job in status.jobs if job.stage == "evaluate"]
    rows: list[tuple[str, str, str]] = []
    for job in status.jobs:
        if job.stage == "measure_speed":
            rows.append((f"speed of {cell_name(job.path)}", in_words(status, job), ""))
    for cell, paths in groupby(sorted(products, key=cell_name), key=cell_name):
        rows.append((cell, "", ""))
        for path in paths:
            made = in_words(status, jobs[path]) if path in jobs else ""
            rows.append((f"  {run_name(path)}", made, in_words(status, jobs[f"evaluate/{path}"])))
    return aligned([("", "warm-up or training", "evaluation"), *rows])


def in_words(status: Status, job: Job) -> str:
    """Return the state of a job for a column of the table."""
    if job.state == "done":
        return result_of(status.folders, job.path)
    if job.state == "running":
        return pace_of(status.folders, job)
    if job.progress is not None:
        return f"{job.state} at {job.progress.unit} {job.progress.done}/{job.progress.total}"
    return job.state


def cell_table(status: Status) -> list[str]:
    """Return a row per cell, with the number of finished jobs of each stage."""
    rows: list[tuple[str, ...]] = [("cell", *STAGES)]
    for cell, found in groupby(
        sorted(status.jobs, key=lambda job: cell_name(job.path)), lambda job: cell_name(job.path)
    ):
        jobs = list(found)
        rows.append((cell, *(counts([job for job in jobs if job.stage == stage]) for stage in STAGES)))
    return aligned(rows)


def counts(jobs: list[Job]) -> str:
    """Return how many jobs are done, running, failed and stopped."""
    if not jobs:
        return ""
    number = {state: sum(job.state == state for job in jobs) for state in ("done", "running", "failed", "stopped")}
    others = [f"{count} {state}" for state, count in number.items() if count and state != "done"]
    return ", ".join([f"{number['done']}/{len(jobs)}", *others])


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines, with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def failure(status: Status, job: Job) -> list[str]:
    """Return the lines about a failed job: its name with its sentence, and its log."""
    return [f"  {job_name(job.path)}: {job.sentence}", f"    {status.folders.logs / job.path}.log"]


def listed(title: str, blocks: list[list[str]]) -> Iterator[str]:
    """Yield a heading and the first blocks of lines, and say how many more there are."""
    if blocks:
        yield from ("", f"{title}:")
    for block in blocks[:MOST_LISTED]:
        yield from block
    if len(blocks) > MOST_LISTED:
        yield f"  and {len(blocks) - MOST_LISTED} more"


def finished(status: Status, path: str, seconds: float) -> str:
    """Return the line about a job that has just finished: its name, its result, its time, and the time left."""
    is_stage = path.startswith(STAGES)
    result = f"{result_of(status.folders, path)}, " if is_stage else ""
    left = f"; {time_left(status)}" if is_stage and status.seconds_left else ""
    return f"{job_name(path)}: {result}{duration(seconds)}{left}"


def end_of_failures(study: str, failed: list[tuple[str, Path]], interrupted: bool) -> str:
    """Return what a study says when it ends before it is complete.

    Args:
        study: the name of the study.
        failed: the name and the log of each failed job.
        interrupted: whether the user stopped it.
    """
    lines = ["", f"The study '{study}' is not complete: {len(failed)} of its jobs failed."] if failed else [""]
    for name, log in failed:
        lines += [f"  {name}: {last_sentence(log)}", f"    {log}"]
    if interrupted:
        return "\n".join([*lines, f"The study '{study}' was interrupted; run the same command to go on."])
    return "\n".join([*lines, "Remove the cause and run the same command to go on; finished jobs are kept."])
