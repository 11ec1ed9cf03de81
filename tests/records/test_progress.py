"""The rows of a log that say how far a job is."""

import pytest

from nested_reft.records.progress import Progress, completion_row, duration, last_progress, step_row


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.6, "1 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3569, "59 min"),
        (3599, "1 h"),
        (7500, "2 h 5 min"),
        (86_399, "1 d"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words


def training(step, seconds=2.0, **metrics):
    sampled = {"sampling/kl": 0.0312, "sampling/acceptance_rate": 0.8234}
    return {"step": step, "loss": 1e-9, "perf/step_s": seconds, **sampled, **metrics}


def test_a_row_of_a_training_shows_what_matters():
    rows = [training(11, 1.0), training(12, 3.0, reward=0.4375)]
    expected = "step 12/40: reward 0.438, KL 0.031, acceptance 0.82, 2 s/step, about 56 s left"
    assert step_row(rows, 40) == expected
    assert step_row(rows, 12) == expected.removesuffix(", about 56 s left").replace("12/40", "12/12")


def test_a_step_without_a_reward_has_a_row():
    assert step_row([training(1, 12.4)], 2) == "step 1/2: KL 0.031, acceptance 0.82, 12 s/step, about 12 s left"


def test_the_time_of_a_step_is_that_of_the_last_steps():
    rows = [training(1, 1000.0), *(training(step, 0.5) for step in range(2, 12))]
    assert step_row(rows, 13).endswith("0.5 s/step, about 1 s left")


def test_a_row_of_a_warm_up_shows_its_loss():
    row = {"step": 1, "loss": 0.0378, "mean_token_accuracy": 0.98934, "perf/step_s": 0.25}
    assert step_row([row], 2) == "step 1/2: loss 0.038, token accuracy 0.989, 0.25 s/step, about 0 s left"


def test_completions_have_a_time_left_until_all_are_done():
    assert completion_row(30, 120, 10.0) == "completion 30/120: about 30 s left"
    assert completion_row(120, 120, 40.0) == "completion 120/120"


@pytest.mark.parametrize(
    ("row", "progress"),
    [
        (step_row([training(12)], 40), Progress("step", 12, 40)),
        (completion_row(30, 120, 10.0), Progress("completion", 30, 120)),
        (completion_row(120, 120, 10.0), Progress("completion", 120, 120)),
        ("starts (attempt 1): model tiny-28", None),
    ],
)
def test_the_last_row_of_a_log_is_read_back(tmp_path, row, progress):
    log = tmp_path / "job.log"
    log.write_text(f"2026-11-27 06:37:52 INFO {row}\n2026-11-27 06:37:53 WARNING something else\n")
    assert last_progress(log) == progress


def test_a_missing_log_has_no_progress(tmp_path):
    assert last_progress(tmp_path / "job.log") is None
