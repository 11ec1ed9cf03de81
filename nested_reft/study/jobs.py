"""One job of a study: its name, its files, and what they say about it.

A job is a measurement of speed (`measure_speed`), a warm-up (`sft`), a training (`train`) or an evaluation
(`evaluate`). It is named by its path below the
results, such as `train/model~M/dataset~D/skip_ratio~X/border~B/mitigation~H/seed~S`. Its log and the table of its run
time have the same path below their own folders.
"""

from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from nested_reft.config import layout
from nested_reft.config.study import Study, instance_label_alone
from nested_reft.errors import RESUMABLE
from nested_reft.records.files import read_json, read_rows
from nested_reft.records.job_logs import INTERRUPTED, NO_MESSAGE, last_sentence
from nested_reft.records.lock import is_locked
from nested_reft.records.progress import STEPS_OF_A_MEAN, Progress, last_progress

# The stages that a product goes through, and the measurement before them. The jobs of the other rules take seconds.
STAGES = ("measure_speed", "sft", "train", "evaluate")

State = Literal["done", "running", "failed", "stopped", "waiting"]


class Folders(NamedTuple):
    """Where a study has its files."""

    results: Path
    logs: Path
    times: Path
    reports: Path

    @classmethod
    def of(cls, directory: Path, study: str) -> "Folders":
        """Return the folders of a study that runs in a working directory."""
        templates = (layout.RESULTS, layout.LOGS, layout.TIMES, layout.REPORTS)
        return cls(*(directory / template.format(study=study) for template in templates))


class Job(NamedTuple):
    """A job and its state. Times are in seconds, moments in seconds since 1970.

    Attributes:
        path: the path of the job below the results.
        state: `stopped` is a job that was interrupted, and that the next start of the study continues.
        started: the moment at which a running job started.
        ended: the moment at which a finished job ended, or None if it is unknown.
        seconds: how long a finished job took, or None if it is unknown.
        progress: how far a running or stopped job is, or None if its log does not say so.
        sentence: why a job failed.
    """

    path: str
    state: State
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    progress: Progress | None = None
    sentence: str = ""

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        return stage_of(self.path)


def job_paths(study: Study) -> list[str]:
    """Return the paths of all jobs of a study: measurements of speed, warm-ups and trainings, then evaluations."""
    products = dict(layout.products(study))
    made = [
        path
        for path, axes in products.items()
        if axes["product"] == "train" or (axes["product"] == "sft" and study.warms_up(axes["model"]))
    ]
    measured = [layout.MEASURE_SPEED.format(model=model) for model in study.grid.model if study.analysis.speed_rounds]
    return [*measured, *made, *(layout.EVALUATE.format(product=path) for path in products)]


def stage_of(path: str) -> str:
    """Return the stage in the path of a job, one of `STAGES`."""
    return path.partition("/")[0]


def axes_of(path: str) -> dict[str, str]:
    """Return the axes in a path: `sft/model~M/seed~0` -> {model: M, seed: 0}."""
    return dict(part.split("~", 1) for part in path.split("/") if "~" in part)


def cell_name(path: str) -> str:
    """Return the name of the cell of a job, `model dataset`, or only the model of a pretrained one."""
    axes = axes_of(path)
    return " ".join(axes[axis] for axis in ("model", "dataset") if axis in axes)


def run_name(path: str) -> str:
    """Return the name of a job within its cell, such as `15% retrace s0`, `baseline s0`, `sft s0` or `pretrained`."""
    axes = axes_of(path)
    made = "speed" if stage_of(path) == "measure_speed" else "sft" if "sft/" in path else "pretrained"
    name = instance_label_alone(axes) if "skip_ratio" in axes else made
    return f"{name} s{axes['seed']}" if "seed" in axes else name


def job_name(path: str) -> str:
    """Return the whole name of a job: its stage, its cell, and its name within the cell.

    The other rules of the workflow, such as `prepare_model/model~M`, have their name and their axes.
    """
    stage = stage_of(path)
    if stage not in STAGES:
        return " ".join([stage.replace("_", " "), *axes_of(path).values()])
    name = run_name(path)
    if stage == "measure_speed":
        return f"measure speed {cell_name(path)}"
    return f"{stage} {cell_name(path)} {name.removeprefix('sft ') if stage == 'sft' else name}"


def read_job(folders: Folders, path: str, study_started: float | None) -> Job:
    """Return the state of a job.

    Args:
        folders: the folders of the study.
        path: the path of the job.
        study_started: the moment at which the Snakemake that runs the study was started, or None if none runs.
    """
    result, log = folders.results / path, folders.logs / f"{path}.log"
    if (result / "run.json").exists():
        ended, seconds = read_times(folders.times / f"{path}.tsv")
        return Job(path, "done", ended=ended, seconds=seconds)
    if is_locked(result / ".lock"):
        return Job(path, "running", started=(result / ".lock").stat().st_mtime, progress=last_progress(log))
    if not log.exists():
        return Job(path, "waiting")
    changed = log.stat().st_mtime
    if study_started is not None and changed < study_started:  # Snakemake starts the job again
        return Job(path, "waiting", progress=last_progress(log))
    if study_started is not None and log.stat().st_size == 0:  # the job still imports its libraries
        return Job(path, "running", started=changed)
    sentence = last_sentence(log)
    if sentence == INTERRUPTED or sentence.endswith(RESUMABLE) or (sentence == NO_MESSAGE and study_started is None):
        return Job(path, "stopped", progress=last_progress(log))
    return Job(path, "failed", sentence=sentence)


def read_times(table: Path) -> tuple[float | None, float | None]:
    """Return when a job ended and how long it took, from the table that Snakemake wrote after it."""
    lines = table.read_text().splitlines() if table.exists() else []
    if len(lines) < 2:  # the job was run by hand, or Snakemake is writing the table
        return None, None
    return table.stat().st_mtime, float(lines[1].split("\t")[0])


def result_of(folders: Folders, path: str) -> str:
    """Return the result of a finished job in words: how the reward or the loss changed, the accuracy, or the speed."""
    folder = folders.results / path
    if stage_of(path) == "measure_speed":
        metrics = read_json(folder / "metrics.json")
        gains = [f"{ratio:.2f}" for name, ratio in metrics.items() if name.startswith("speed_up/")]
        return f"{', '.join(sorted(gains))} times as fast"
    if path.startswith("evaluate/"):
        return f"accuracy {100 * read_json(folder / 'metrics.json')['eval/overall/pass_at_1']:.1f}%"
    metric = "loss" if path.startswith("sft/") else "reward"
    values = [row[metric] for row in read_rows(folder / "metrics.jsonl") if metric in row]
    count = min(STEPS_OF_A_MEAN, (len(values) + 1) // 2)
    return f"{metric} {fmean(values[:count]):.2f} -> {fmean(values[-count:]):.2f}"


def pace_of(folders: Folders, job: Job) -> str:
    """Return how far a running job is in words, with the reward and the token speed of its last steps."""
    if job.progress is None:
        return "starting"
    parts = [f"{job.progress.unit} {job.progress.done}/{job.progress.total}"]
    rows = last_rows(folders.results / job.path / "checkpoints/metrics.jsonl")
    if rewards := [row["reward"] for row in rows if "reward" in row]:
        parts.append(f"reward {fmean(rewards):.2f}")
    if speeds := [row["perf/total_tok_s"] for row in rows if "perf/total_tok_s" in row]:
        parts.append(f"{fmean(speeds):.0f} tok/s")
    return ", ".join(parts)


def last_rows(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of the last steps of a running job, or nothing before its first step."""
    return read_rows(path, torn_end=True)[-STEPS_OF_A_MEAN:] if path.exists() else []
