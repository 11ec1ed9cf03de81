"""The time that a study still needs, from the times of its finished jobs."""

from collections import Counter
from collections.abc import Iterable, Mapping

from nested_reft.study.jobs import STAGES, Job


def mean_seconds(jobs: Iterable[Job], now: float) -> dict[str, float]:
    """Return stage -> the mean time of a job.

    The mean is over the finished jobs of the stage. Before the first of them has finished, it is that of the running
    jobs, extended in proportion to their steps. A stage of which neither is known is left out.
    """
    jobs = list(jobs)
    means = {}
    for stage in STAGES:
        finished = [job.seconds for job in jobs if job.stage == stage and job.seconds is not None]
        extended = [
            (now - job.started) * job.progress.total / job.progress.done
            for job in jobs
            if job.stage == stage
            and job.state == "running"
            and job.started is not None
            and job.progress
            and job.progress.done
        ]
        if times := finished or extended:
            means[stage] = sum(times) / len(times)
    return means


def jobs_at_once(jobs: Iterable[Job], now: float) -> float:
    """Return how many jobs ran at once on average, over the time in which any job ran; at least 1."""
    spans = [(job.ended - job.seconds, job.ended) for job in jobs if job.ended is not None and job.seconds is not None]
    spans += [(job.started, now) for job in jobs if job.state == "running" and job.started is not None]
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return max(1.0, sum(end - start for start, end in spans) / covered) if covered else 1.0


def seconds_left_of(job: Job, mean: float, now: float) -> float:
    """Return the time that an unfinished job still needs, if jobs of its stage take `mean` seconds."""
    if job.state != "running" or job.started is None:
        return mean
    return max(0.0, mean - (now - job.started))


def seconds_left(jobs: Iterable[Job], now: float) -> float | None:
    """Return the time that the unfinished jobs still need together, or None if it cannot be known yet.

    The work that is left is divided by the number of jobs that run at once. It takes at least as long as the longest
    chain of stages that one product still has to go through.

    Args:
        jobs: all jobs of the study. Failed and stopped jobs count as waiting, because the next start repeats them.
        now: the present moment, in seconds since 1970.
    """
    jobs = list(jobs)
    means = mean_seconds(jobs, now)
    unfinished = [job for job in jobs if job.state != "done"]
    if any(job.stage not in means for job in unfinished if job.stage != "measure_speed"):
        return None
    means.setdefault("measure_speed", 0.0)  # it is short, and unknown until it has run
    work = sum(seconds_left_of(job, means[job.stage], now) for job in unfinished)
    chain = max((chain_seconds(job, means, now) for job in unfinished), default=0.0)
    return max(work / max(jobs_at_once(jobs, now), running(jobs)), chain)


def chain_seconds(job: Job, means: Mapping[str, float], now: float) -> float:
    """Return the time until the last stage after this job has ended, if nothing has to wait for a free core."""
    later = STAGES[STAGES.index(job.stage) + 1 :]
    return seconds_left_of(job, means[job.stage], now) + sum(means.get(stage, 0.0) for stage in later)


def running(jobs: Iterable[Job]) -> int:
    """Return the number of running jobs."""
    return Counter(job.state for job in jobs)["running"]
