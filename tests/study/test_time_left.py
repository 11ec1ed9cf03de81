"""The time left of a study, on the timeline of a recorded study and on small cases."""

import csv
from pathlib import Path

import pytest

from nested_reft.records.progress import Progress
from nested_reft.study.jobs import Job
from nested_reft.study.time_left import jobs_at_once, seconds_left

# An embedded study of 10 trainings: two jobs at a time, on a machine that became slower meanwhile.
with (Path(__file__).parent / "timeline.csv").open() as file:
    TIMELINE = [(row["job"], float(row["started"]), float(row["ended"])) for row in csv.DictReader(file)]
END = max(ended for _, _, ended in TIMELINE)


def jobs_at(now: float) -> list[Job]:
    """Return the jobs of the recorded study as they were at this moment."""
    jobs = []
    for path, started, ended in TIMELINE:
        if ended <= now:
            jobs.append(Job(path, "done", ended=ended, seconds=ended - started))
        elif started <= now:
            jobs.append(Job(path, "running", started=started))
        else:
            jobs.append(Job(path, "waiting"))
    return jobs


def moment_after(stages: tuple[str, ...], share: float) -> float:
    """Return the moment at which this share of the jobs of the stages was done."""
    ends = sorted(ended for path, _, ended in TIMELINE if path.startswith(stages))
    return ends[int(len(ends) * share + 0.999) - 1]


@pytest.mark.parametrize("share", [1 / 3, 1 / 2, 2 / 3])
@pytest.mark.parametrize("stages", [("train",), ("sft", "train", "evaluate")], ids=["trainings", "jobs"])
def test_the_estimate_is_within_30_percent_after_a_third_of_the_study(stages, share):
    now = moment_after(stages, share)
    assert 0.25 * END < now < 0.85 * END
    estimate = now + seconds_left(jobs_at(now), now)
    assert abs(estimate - END) < 0.3 * END  # the time of the whole study
    assert abs(estimate - END) < 0.3 * (END - now)  # and even the part that is left


def test_a_finished_study_needs_no_time():
    assert seconds_left(jobs_at(END), END) == 0


def done(path, started, ended):
    return Job(path, "done", ended=ended, seconds=ended - started)


def test_nothing_is_known_before_a_job_of_each_stage_has_begun():
    assert seconds_left([Job("sft/a", "waiting")], 0) is None
    assert seconds_left([done("sft/a", 0, 5), Job("train/a", "running", started=5)], 9) is None


def test_before_the_first_job_ends_its_steps_tell_its_time():
    training = Job("train/a", "running", started=0, progress=Progress("step", 10, 40))
    assert seconds_left([training, Job("train/b", "waiting")], 50) == 200 + 150


def test_a_running_job_counts_with_the_rest_of_its_time_and_a_failed_one_with_all():
    jobs = [done("train/a", 0, 100), Job("train/b", "running", started=100), Job("train/c", "failed")]
    assert seconds_left(jobs, 160) == 40 + 100
    assert seconds_left(jobs, 900) == 100


def test_work_is_divided_by_the_jobs_that_run_at_once():
    jobs = [done(f"train/{n}", start, start + 100) for n, start in enumerate((0, 0, 100, 100))]
    waiting = [Job(f"train/w{n}", "waiting") for n in range(10)]
    assert jobs_at_once(jobs, 200) == 2
    assert seconds_left(jobs + waiting, 200) == 500


def test_a_break_between_two_starts_does_not_count():
    jobs = [done("train/a", 0, 100), done("train/b", 0, 100), done("train/c", 5000, 5100), done("train/d", 5000, 5100)]
    assert jobs_at_once(jobs, 5100) == 2


def test_the_last_product_still_goes_through_all_its_stages():
    jobs = [done(f"train/{n}", 0, 100) for n in range(4)] + [done(f"evaluate/{n}", 100, 130) for n in range(4)]
    assert seconds_left([*jobs, Job("train/z", "waiting"), Job("evaluate/z", "waiting")], 130) == 130
