"""What the figures of a report share: panels, legends, and the names and colors of what is drawn."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nested_reft.mitigation import MITIGATIONS
from nested_reft.report.sources import CELL, INSTANCE, Sources, grid_of, instance_label
from nested_reft.report.style import BASELINE, PALETTE, STYLE, WIDTH

# A function that draws a figure from the sources and the tables of a report. It returns the reason, as a sentence,
# where the sources lack what the figure shows.
Tables = Mapping[str, pd.DataFrame]
Draw = Callable[[Sources, Tables], Figure | str]

# A mitigation has the same color and marker in every figure; a new one takes the next.
COLORS = dict(zip(MITIGATIONS, cycle(PALETTE), strict=False))
MARKERS = dict(zip(MITIGATIONS, cycle("os^DvPX<>*p"), strict=False))
BASELINE_NAME = "baseline (skips no layers)"
# The skip ratio is on the axis of most figures, or one panel shows one skip ratio. The other axes of an instance make
# a series: points of one color, joined by a line.
SERIES = [axis for axis in INSTANCE if axis != "skip_ratio"]
# The markers and the line of a series by the index of its border.
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


# ---- names --------------------------------------------------------------------------------------------


def percent(value: float, _: Any = None) -> str:
    """Return a share as a label."""
    return f"{100 * value:g}%"


def accuracies_in_percent(axis: Any) -> None:
    """Let the y axis of a panel show shares as percentages."""
    axis.yaxis.set_major_formatter(percent)


class Series(NamedTuple):
    """The instances of a cell that differ in the skip ratio only: their label, style and rows."""

    label: str
    style: dict[str, Any]
    offset: float  # from the center of a group, in units of the distance between two series
    rows: pd.DataFrame


def series_of(rows: pd.DataFrame) -> list[Series]:
    """Return the series of the instances among the rows, in the order of the rows; the baseline is left out.

    Args:
        rows: a table with the axes of the instances.
    """
    grid, found = grid_of(rows), []
    groups = list(rows[rows["skip_ratio"] > 0].groupby(SERIES, sort=False))
    for index, (values, series_rows) in enumerate(groups):
        axes = dict(zip(SERIES, values, strict=True))
        mitigation, border = str(axes["mitigation"]), grid["border"].index(axes["border"])
        # Every figure shows a baseline, too, so the mitigation `base` has to be distinguished from it.
        label = instance_label(axes, grid) + (" (mitigation)" if mitigation == "base" else "")
        style = {
            "color": COLORS[mitigation],
            "marker": MARKERS[mitigation],
            "markersize": 5,
            "fillstyle": FILLS[border % len(FILLS)],
            "linestyle": LINES[border % len(LINES)],
        }
        found.append(Series(label, style, index - (len(groups) - 1) / 2, series_rows))
    return found


# ---- panels -------------------------------------------------------------------------------------------


def panels(rows: int, columns: int, height: float, width: float = WIDTH, **shared: Any) -> tuple[Figure, Any]:
    """Return a figure of this size in inches, and its axes (rows, columns)."""
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **shared)


def cells_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (model, dataset) of a table, in its order."""
    return list(table[CELL].drop_duplicates().itertuples(index=False, name=None))


def rows_of(table: pd.DataFrame, cell: tuple[str, str]) -> pd.DataFrame:
    """Return the rows of a (model, dataset)."""
    return table[(table["model"] == cell[0]) & (table["dataset"] == cell[1])]


def cell_panels(table: pd.DataFrame, height: float, **shared: Any) -> tuple[Figure, list[tuple[Any, pd.DataFrame]]]:
    """Return a figure with a row per model and a column per dataset, and (axis, rows of the cell) for each panel.

    Args:
        table: a table with the columns model and dataset.
        height: the height of a panel in inches.
        shared: arguments of `plt.subplots`, such as `sharex`.
    """
    models, datasets = list(table["model"].unique()), list(table["dataset"].unique())
    width = min(WIDTH, 1.6 + 3.5 * len(datasets))
    figure, axes = panels(len(models), len(datasets), 0.9 + height * len(models), width, **shared)
    cells = []
    for row, model in zip(axes, models, strict=True):
        for axis, dataset in zip(row, datasets, strict=True):
            axis.set_title(f"{model}, {dataset}")
            cells.append((axis, rows_of(table, (model, dataset))))
    return figure, cells


def name_axes(figure: Figure, x: str, y: str = "") -> None:
    """Name what all panels share: the x axis below the lowest panel of each column, the y axis once at the left."""
    columns: dict[int, Any] = {}
    for axis in figure.axes:  # from the upper panels to the lower ones
        place = axis.get_subplotspec()
        if place and axis.get_visible() and axis.axison:  # and not an empty or a missing panel
            columns[place.colspan.start] = axis
    for axis in columns.values():
        axis.set_xlabel(x)
        axis.tick_params(labelbottom=True)
    figure.supylabel(y, fontsize=9)


def name_row(axis: Any, cell: tuple[str, str]) -> None:
    """Write the names of a cell at the right end of its row of panels."""
    axis.annotate(
        "\n".join(cell),
        (1.02, 0.5),
        xycoords="axes fraction",
        rotation=-90,
        ha="left",
        va="center",
        multialignment="center",
    )


def mark_missing(axis: Any) -> None:
    """Write into a panel that there is nothing to draw."""
    if not axis.has_data():
        axis.set_axis_off()
    box = {"facecolor": "white", "edgecolor": "none"}  # covers what a panel without data still shows, such as bounds
    axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=BASELINE, bbox=box)


# ---- legends ------------------------------------------------------------------------------------------


def sample(label: str, **style: Any) -> Line2D:
    """Return an entry of a legend that is drawn as a line or as a marker."""
    return Line2D([], [], label=label, **style)


def legend_row(figure: Figure, handles: Sequence[Any]) -> None:
    """Put one legend below all panels, in as few rows as its width allows."""
    if not handles:  # every panel is missing
        return
    widths = [0.065 * len(handle.get_label()) + 0.55 for handle in handles]  # inches: a label of 8 points, a handle
    rows = 1
    while rows < len(handles):
        columns = [max(widths[start : start + rows]) for start in range(0, len(handles), rows)]  # filled one by one
        if sum(columns) <= figure.get_figwidth():
            break
        rows += 1
    figure.legend(handles=list(handles), loc="outside lower center", ncols=math.ceil(len(handles) / rows))


def legend(figure: Figure) -> None:
    """Put the labels of all panels into one legend below them, each once."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries}
    for label, handle in entries.items():
        handle.set_label(label)
    legend_row(figure, list(entries.values()))


# ---- intervals ----------------------------------------------------------------------------------------


def errors(rows: pd.DataFrame, center: str, low: str, high: str) -> list[pd.Series]:
    """Return how far an interval reaches below and above its center, and 0 for a row without an interval."""
    return [(rows[center] - rows[low]).fillna(0).clip(lower=0), (rows[high] - rows[center]).fillna(0).clip(lower=0)]


def seed_range(runs: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Return the mean, the lowest and the highest value of the seeds' runs for each value of the column `by`."""
    return runs.groupby(by)[value].agg(["mean", "min", "max"]).dropna()


def spread_of(seeds: pd.DataFrame) -> list[pd.Series]:
    """Return how far the lowest and the highest seed are from the mean, as error bars.

    The mean of equal values can differ from them by rounding, and matplotlib refuses an error bar below zero.
    """
    return [(seeds["mean"] - seeds["min"]).clip(lower=0), (seeds["max"] - seeds["mean"]).clip(lower=0)]


def largest_ratio(steps: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Yield (cell, its baseline's rows and those of its instances with the largest skip ratio)."""
    largest = steps["skip_ratio"].max()
    for cell in cells_of(steps):
        rows = rows_of(steps, cell)
        yield cell, rows[rows["skip_ratio"].isin([0, largest])]
