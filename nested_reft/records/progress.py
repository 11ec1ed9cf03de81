"""The rows of a job's log that say how far the job is, and how to read the last of them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nested_reft.records.job_logs import read_tail

# The time of a step is the mean over this many of the last steps, because single steps differ.
STEPS_OF_A_MEAN = 10

# What a row shows of the metrics of a step: metric -> words. The loss of a policy gradient says nothing by itself.
SHOWN_OF_TRAINING = {
    "reward": "reward {:.3f}",
    "sampling/kl": "KL {:.2g}",
    "sampling/acceptance_rate": "acceptance {:.2f}",
}
SHOWN_OF_SFT = {"loss": "loss {:.3f}", "mean_token_accuracy": "token accuracy {:.3f}"}

PROGRESS = re.compile(r"\b(step|completion) (\d+)/(\d+)(?:: .*)?$", re.M)


class Progress(NamedTuple):
    """How far a job is: `done` of `total` steps or completions."""

    unit: str
    done: int
    total: int


def duration(seconds: float) -> str:
    """Return a duration in words, in the two largest units that it needs: `40 s`, `3 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def step_row(rows: Sequence[Mapping[str, Any]], total: int) -> str:
    """Return the row of a log for the last of these steps.

    Args:
        rows: the metrics of the steps so far, as `metrics.jsonl` has them.
        total: the number of steps of the whole stage.
    """
    last = rows[-1]
    shown = SHOWN_OF_TRAINING if "sampling/kl" in last else SHOWN_OF_SFT
    parts = [words.format(last[metric]) for metric, words in shown.items() if metric in last]
    times = [row["perf/step_s"] for row in rows[-STEPS_OF_A_MEAN:]]
    seconds = sum(times) / len(times)
    parts.append(f"{seconds:.2g} s/step" if seconds < 10 else f"{seconds:.0f} s/step")
    if last["step"] < total:
        parts.append(f"about {duration(seconds * (total - last['step']))} left")
    return f"step {last['step']}/{total}: {', '.join(parts)}"


def completion_row(done: int, total: int, seconds: float) -> str:
    """Return the row of a log after `done` of `total` completions, which took `seconds` seconds."""
    left = f": about {duration(seconds / done * (total - done))} left" if done < total else ""
    return f"completion {done}/{total}{left}"


def last_progress(log: Path) -> Progress | None:
    """Return how far a job is by the last such row of its log, or None without one."""
    found = PROGRESS.findall(read_tail(log))
    return Progress(found[-1][0], int(found[-1][1]), int(found[-1][2])) if found else None
