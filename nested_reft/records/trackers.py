"""Trackers other than MLflow: each gets the rows of a record while a stage runs, where its package is installed.

The files of the results are complete without them: a tracker that fails is named once in the log and then left alone.
Each writes below the folder of the product or, in the case of Trackio, into its own local store; none needs a network.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nested_reft.records.files import discard
from nested_reft.records.mlflow_views import run_name

log = logging.getLogger(__name__)


class Sink(NamedTuple):
    """What a tracker does with the numbers of a step, and how it ends."""

    log: Callable[[dict[str, float], int], object]
    close: Callable[[], object]


def open_tensorboard(record: Mapping[str, Any], folder: Path) -> Sink:
    """Write event files into the folder `tensorboard` of the product."""
    from torch.utils.tensorboard import SummaryWriter

    events = folder / "tensorboard"
    if record["attempts"] == 1:  # the events of an earlier product would be shown as a part of this one
        discard(events)
    writer = SummaryWriter(str(events))

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Sink(write, writer.close)


def open_wandb(record: Mapping[str, Any], folder: Path) -> Sink:
    """Write a run of Weights & Biases into the folder `wandb` of the product; `WANDB_MODE=online` also uploads it."""
    import wandb

    run = wandb.init(
        project=record["study"],
        name=run_name(record["stage"], record["run"]),
        id=hashlib.sha256(record["uid"].encode()).hexdigest()[:16],  # a resumed stage continues its run
        resume="allow",
        config=dict(record["settings"]),
        job_type=record["stage"],
        dir=str(folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
    )
    return Sink(lambda numbers, step: run.log(numbers, step=step), run.finish)


def open_trackio(record: Mapping[str, Any], folder: Path) -> Sink:
    """Write a run into the local store of Trackio, whose folder the variable `TRACKIO_DIR` names."""
    import trackio

    name = run_name(record["stage"], record["run"])
    resume = "allow" if record["attempts"] > 1 else "never"
    trackio.init(project=record["study"], name=name, config=dict(record["settings"]), resume=resume)
    return Sink(lambda numbers, step: trackio.log(numbers, step=step), trackio.finish)


# name in `tracking.report_to` -> what opens the tracker. A name is also that of its package.
TRACKERS: dict[str, Callable[[Mapping[str, Any], Path], Sink]] = {
    "tensorboard": open_tensorboard,
    "trackio": open_trackio,
    "wandb": open_wandb,
}


def missing_trackers(report_to: Iterable[str]) -> list[str]:
    """Return the trackers whose packages are not installed."""
    return [name for name in report_to if find_spec(name) is None]


def trackers_problem(report_to: Iterable[str]) -> str | None:
    """Return which trackers are not installed, as one sentence with the remedy, or None if all are."""
    missing = missing_trackers(report_to)
    if not missing:
        return None
    command = f"pip install {' '.join(missing)}"
    return f"tracking.report_to names {', '.join(missing)}, which is not installed; run `{command}` or remove it there"


class Tracker:
    """A tracker that follows the record of a stage. No method raises: the first failure is logged and ends it.

    Args:
        name: a name in `TRACKERS`.
        record: the content of the stage's run.json, perhaps without the entries that the end of the stage adds.
        folder: the folder of the product.
    """

    def __init__(self, name: str, record: Mapping[str, Any], folder: Path) -> None:
        self.name = name
        self.sink: Sink | None = None
        self.last_step = 0
        with self.ended_by_a_failure():
            self.sink = TRACKERS[name](record, folder)

    @contextmanager
    def ended_by_a_failure(self) -> Iterator[None]:
        """Log a failure of the tracker, and send nothing more to it."""
        try:
            yield
        except Exception as error:
            log.warning("%s failed (%s); the files of the results have all metrics", self.name, error)
            self.sink = None

    def send(self, rows: list[dict[str, Any]]) -> None:
        """Send the numbers of rows."""
        for row in rows:
            self.last_step = row["step"]
            names = [name for name in row if name not in ("step", "time") and isinstance(row[name], int | float)]
            if self.sink:
                with self.ended_by_a_failure():
                    self.sink.log({name: row[name] for name in names}, row["step"])

    def abandon(self, status: str) -> None:
        """Close the tracker, so that it writes the rows that it has kept."""
        if self.sink:
            with self.ended_by_a_failure():
                self.sink.close()

    def finish(self, metrics: Mapping[str, float], folder: Path) -> None:
        """Send the result of the stage, one step after the last one, and close the tracker."""
        self.send([{"step": self.last_step + 1} | {f"result/{name}": value for name, value in metrics.items()}])
        if self.sink:
            with self.ended_by_a_failure():
                self.sink.close()
