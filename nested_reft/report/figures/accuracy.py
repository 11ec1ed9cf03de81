"""Figures of the accuracy: of each instance, and against the speed that it gains."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import (
    Tables,
    cell_panels,
    curves,
    errors,
    legend,
    mark_missing,
    panels,
    percent,
    styled,
)
from nested_reft.report.sources import CELL, INSTANCE, Sources, grid_of, instance_label
from nested_reft.report.style import BASELINE

TITLES = {"accuracy": "Accuracy", "token_speed_tok_s": "Token speed", "train_runtime_s": "Run time"}
UNITS = {"accuracy": "share correct", "token_speed_tok_s": "tokens/s", "train_runtime_s": "s"}


def draw_metric(axis: Any, rows: pd.DataFrame) -> None:
    """Draw one metric of one cell against the skip ratio, with the interval of each instance's delta."""
    ratios = sorted(rows["skip_ratio"].unique())
    axis.set_xticks(ratios)
    axis.xaxis.set_major_formatter(percent)
    step = min([b - a for a, b in pairwise(ratios)], default=0.05)
    axis.set_xlim(ratios[0] - step / 2, ratios[-1] + step / 2)
    if rows["instance"].isna().all():
        mark_missing(axis)
        return
    axis.axhline(rows["baseline"].mean(), color=BASELINE, linestyle="--", linewidth=1, label="baseline")
    for label, marks, offset, curve in curves(rows, 0.07 * step):
        axis.errorbar(
            curve["skip_ratio"] + offset,
            curve["instance"],
            yerr=errors(curve, "absolute_delta", "ci_low", "ci_high"),
            linewidth=1.2,
            elinewidth=0.7,
            capsize=2,
            label=label,
            **marks,
        )


@styled
def dataset_figure(sources: Sources, tables: Tables, dataset: str) -> Figure:
    """Draw Figures 1-3 of the paper: metrics against the skip ratio, a column per model.

    The bar of an instance is the interval of its delta to the baseline. An instance whose bar does not reach the
    dashed line differs from the baseline, before any correction for the number of comparisons.

    Args:
        sources: the sources of the report.
        tables: the tables of the report.
        dataset: the dataset of the figure.
    """
    deltas = tables["deltas"][tables["deltas"]["dataset"] == dataset]
    models = list(deltas["model"].unique())
    figure, axes = panels(len(UNITS), len(models), 0.9 + 3.0 * len(models), 1.9 * len(UNITS) + 0.5, sharex=True)
    for column, model in zip(axes.T, models, strict=True):
        model_deltas = deltas[deltas["model"] == model]
        for axis, metric in zip(column, UNITS, strict=True):
            draw_metric(axis, model_deltas[model_deltas["metric"] == metric])
        absent = model_deltas[(model_deltas["metric"] == "accuracy") & model_deltas["instance"].isna()]
        names = [instance_label(instance, grid_of(deltas)) for instance in absent[INSTANCE].to_dict("records")]
        note = f"\nmissing: {', '.join(names)}" if 0 < len(names) < 4 else ""
        column[0].set_title(f"{model}, {dataset}{note}")
        column[-1].set_xlabel("skip ratio (share of layers skipped in roll-outs)")
    for axis, (metric, unit) in zip(axes[:, 0], UNITS.items(), strict=True):
        axis.set_ylabel(f"{TITLES[metric]} [{unit}]")
    legend(figure)
    return figure


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point equals or exceeds in both coordinates, sorted by the first coordinate."""
    return sorted(p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points))


@styled
def frontier(sources: Sources, tables: Tables) -> Figure:
    """Draw accuracy against token speed, both as deltas to the baseline, and their Pareto front."""
    deltas = tables["deltas"]
    keys = [*CELL, *INSTANCE]
    relative = ["relative_delta", "relative_ci_low", "relative_ci_high"]
    speed = deltas[deltas["metric"] == "token_speed_tok_s"][[*keys, *relative]]
    both = deltas[deltas["metric"] == "accuracy"].merge(speed, on=keys, suffixes=("", "_speed"))
    ratios = sorted(both["skip_ratio"].unique())
    sizes = {ratio: 3.0 + 1.5 * index for index, ratio in enumerate(ratios)}
    figure, cells = cell_panels(both, 2.5, 2.3)
    for axis, rows in cells:
        if rows["absolute_delta"].isna().all():
            mark_missing(axis)
            continue
        axis.axhline(0, color=BASELINE, linewidth=0.6)
        axis.axvline(0, color=BASELINE, linewidth=0.6)
        axis.plot(0, 0, color=BASELINE, marker="*", markersize=8, linestyle="", label="baseline")
        for label, marks, _, curve in curves(rows):
            for skip_ratio, instance in curve.groupby("skip_ratio", sort=False):
                axis.errorbar(
                    instance["relative_delta_speed"],
                    instance["absolute_delta"],
                    xerr=errors(instance, *(f"{name}_speed" for name in relative)),
                    yerr=errors(instance, "absolute_delta", "ci_low", "ci_high"),
                    linestyle="",
                    elinewidth=0.5,
                    label=label if skip_ratio == ratios[-1] else None,
                    **marks | {"markersize": sizes[skip_ratio]},
                )
        measured = rows[["relative_delta_speed", "absolute_delta"]].dropna().itertuples(index=False)
        front = pareto_front([(0.0, 0.0), *(tuple(point) for point in measured)])
        style = {"color": BASELINE, "linestyle": ":", "linewidth": 1}
        axis.step(*zip(*front, strict=True), where="pre", label="frontier", **style)
        for ratio, size in sizes.items():
            axis.plot([], [], color="#bbbbbb", marker="o", linestyle="", markersize=size, label=percent(ratio))
        axis.xaxis.set_major_formatter(percent)
        axis.set_xlabel("token speed, change")
        axis.set_ylabel("accuracy, delta")
    legend(figure)
    return figure


@styled
def heat_map(sources: Sources, tables: Tables) -> Figure:
    """Draw the accuracy delta of the whole grid: a row per cell, a column per instance."""
    deltas = tables["deltas"][tables["deltas"]["metric"] == "accuracy"]
    cells = list(deltas[CELL].drop_duplicates().itertuples(index=False, name=None))
    instances = list(deltas[INSTANCE].drop_duplicates().itertuples(index=False, name=None))

    def grid(values: pd.Series) -> np.ndarray:
        wide = deltas.assign(value=values).pivot(index=CELL, columns=INSTANCE, values="value")
        return wide.reindex(index=cells, columns=instances).to_numpy()

    points, resolved = 100 * grid(deltas["absolute_delta"]).astype(float), grid(deltas["verdict"] == "resolved")
    limit = max(1.0, float(np.nanmax(np.abs(points)))) if not np.isnan(points).all() else 1.0
    size = 2.4 + 0.55 * len(instances), max(2.8, 1.7 + 0.38 * len(cells))
    figure, axes = panels(1, 1, *size)
    axis = axes[0, 0]
    axis.grid(visible=False)
    axis.set_facecolor("#dddddd")
    image = axis.imshow(np.ma.masked_invalid(points), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.ndindex(points.shape):
        value = points[row, column]
        text = "missing" if np.isnan(value) else f"{value:+.1f}{'*' if resolved[row, column] else ''}"
        color = "white" if abs(value) > 0.7 * limit else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)
    labels = [instance_label(dict(zip(INSTANCE, values, strict=True)), grid_of(deltas)) for values in instances]
    axis.set_xticks(range(len(instances)), labels, rotation=45, ha="right")
    axis.set_yticks(range(len(cells)), [f"{model}, {dataset}" for model, dataset in cells])
    axis.set_xlabel("instance")
    figure.colorbar(image, ax=axis, label="accuracy delta, points")
    return figure
