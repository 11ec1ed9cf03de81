"""What the figures of a report share: panels, legends, colors and names of the mitigations."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from nested_reft.mitigation import MITIGATIONS
from nested_reft.report.sources import INSTANCE, Sources, grid_of, instance_label
from nested_reft.report.style import BASELINE, PALETTE, STYLE

# A function that draws a figure from the sources and the tables of a report. It returns the reason, as a sentence,
# where the sources lack what the figure shows.
Tables = Mapping[str, pd.DataFrame]
Draw = Callable[[Sources, Tables], Figure | str]

# A mitigation has the same color and marker in every figure; a new one takes the next.
COLORS = dict(zip(MITIGATIONS, PALETTE, strict=False))
MARKERS = dict(zip(MITIGATIONS, "os^DvPX", strict=False))
# The axes that a curve over the skip ratios has one value of, and its markers and its line by the index of its border.
CURVE = [axis for axis in INSTANCE if axis != "skip_ratio"]
FILLS = ["full", "none", "left", "right", "top", "bottom"]
LINES = ["-", "--", ":", "-."]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", bound=Figure | str)


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function that draws a figure: it draws in the shared style."""

    @wraps(draw)
    def in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def percent(value: float, _: Any = None) -> str:
    """Return a share as a label."""
    return f"{100 * value:g}%"


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes (rows, columns)."""
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **shared)


def cell_panels(
    table: pd.DataFrame, width: float, height: float, **shared: Any
) -> tuple[Figure, list[tuple[Any, pd.DataFrame]]]:
    """Return a figure with a row per model and a column per dataset, and (axis, rows of the cell) for each panel.

    Args:
        table: a table with the columns model and dataset.
        width: the width of a panel in inches.
        height: the height of a panel in inches.
        shared: `sharex` and `sharey` of `plt.subplots`.
    """
    models, datasets = list(table["model"].unique()), list(table["dataset"].unique())
    size = max(4.2, 0.9 + width * len(datasets)), 0.8 + height * len(models)
    figure, axes = panels(len(models), len(datasets), *size, **shared)
    cells = []
    for row, model in zip(axes, models, strict=True):
        for axis, dataset in zip(row, datasets, strict=True):
            axis.set_title(f"{model}, {dataset}")
            cells.append((axis, table[(table["model"] == model) & (table["dataset"] == dataset)]))
    return figure, cells


def legend(figure: Figure) -> None:
    """Put one legend below all panels, each entry once."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries}
    if not entries:  # every panel is missing
        return
    wanted = sum(0.07 * len(label) + 0.6 for label in entries)  # inches: a label of 8 points, and its handle
    rows = math.ceil(wanted / figure.get_figwidth())
    columns = math.ceil(len(entries) / rows)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def mark_missing(axis: Any) -> None:
    """Write into a panel that there is nothing to draw."""
    box = {"facecolor": "white", "edgecolor": "none"}  # covers what a panel without data still shows, such as bounds
    axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=BASELINE, bbox=box)


def errors(rows: pd.DataFrame, center: str, low: str, high: str) -> list[pd.Series]:
    """Return how far an interval reaches below and above its center, 0 where there is no interval."""
    return [(rows[center] - rows[low]).fillna(0).clip(lower=0), (rows[high] - rows[center]).fillna(0).clip(lower=0)]


def points(mitigation: str) -> dict[str, Any]:
    """Return the style of a mitigation's points."""
    return {"color": COLORS[mitigation], "marker": MARKERS[mitigation], "markersize": 4}


def curves(rows: pd.DataFrame, shift: float = 0.0) -> Iterator[tuple[str, dict[str, Any], float, pd.DataFrame]]:
    """Yield (label, style, offset on the x axis, rows) of each curve: a mitigation, perhaps at one of several borders.

    Points are shifted so that their bars stay visible.
    """
    grid = grid_of(rows)
    for index, (values, curve) in enumerate(rows[rows["skip_ratio"] > 0].groupby(CURVE, sort=False)):
        axes = dict(zip(CURVE, values, strict=True))
        fill = {"fillstyle": FILLS[grid["border"].index(axes["border"]) % len(FILLS)]}
        yield instance_label(axes, grid), points(str(axes["mitigation"])) | fill, shift * (index - 1), curve
