"""Figures of the accuracy: of each instance, of the whole grid, and per benchmark."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from nested_reft.report.deltas import overall
from nested_reft.report.figures.common import (
    BASELINE_NAME,
    Tables,
    accuracies_in_percent,
    cell_panels,
    cells_of,
    errors,
    legend,
    legend_row,
    mark_missing,
    name_axes,
    panels,
    percent,
    rows_of,
    sample,
    series_of,
    styled,
)
from nested_reft.report.interim import WAITING
from nested_reft.report.sources import INSTANCE, Sources, grid_of, instance_label
from nested_reft.report.speed import is_measured
from nested_reft.report.style import BASELINE, BOUND, PALETTE, SMALL, WIDTH

# The metrics of Figures 1-3. The speeds are those seen during training, unless the speed of sampling was measured.
METRICS = {
    "accuracy": "accuracy",
    "token_speed_tok_s": "token speed\n[tokens/s]",
    "train_runtime_s": "run time [s]",
}
MEASURED_METRICS = METRICS | {
    "token_speed_tok_s": "speed of sampling,\nmeasured [tokens/s]",
    "train_runtime_s": "run time in\ntraining [s]",
}
FEWER_SEEDS: dict[str, Any] = {"linestyle": (0, (1, 1.5))}  # the interval of a delta with fewer seeds than the study
MARGIN: dict[str, Any] = {"color": "#000000", "alpha": 0.09, "linewidth": 0}  # the band of changes that do not matter
# The frames of the heat map.
FRAMES: dict[str, dict[str, Any]] = {
    "better": {"linewidth": 2},
    "worse": {"linewidth": 2},
    "equivalent": {"linewidth": 1.2, "linestyle": ":"},
}
FOREST_WIDTH = 6.4  # inches: the first screen of a page shows this figure, beside the answer
NARROW_WIDTH = 3.6  # inches: the first screen of a page on a phone


# ---- the deltas of the whole grid ---------------------------------------------------------------------


class Mark(NamedTuple):
    """How a forest draws a verdict: the color of the interval, the marker, and whether it is thick and filled."""

    color: str
    marker: str
    is_decided: bool


# A marker of its own for each verdict, so that they are distinct in gray, too.
MARKS = {
    "better": Mark(PALETTE[0], "^", True),
    "worse": Mark(PALETTE[1], "v", True),
    "equivalent": Mark(PALETTE[2], "D", True),
    "inconclusive": Mark("#707070", "o", False),
    WAITING: Mark("#707070", "s", False),
}


def mark_style(verdict: str) -> dict[str, Any]:
    """Return the style of the line and of the marker of a verdict."""
    mark = MARKS[verdict]
    filled = mark.color if mark.is_decided else "white"
    line = {"color": mark.color, "linewidth": 2 if mark.is_decided else 1.2}
    return line | {"marker": mark.marker, "markersize": 5.5, "markerfacecolor": filled}


def draw_deltas(axis: Any, rows: pd.DataFrame, with_text: bool, num_seeds: int, margin: float) -> None:
    """Draw the deltas of one cell as a forest: a row each, in this order.

    Args:
        axis: the panel.
        rows: the deltas of the cell.
        with_text: write each delta and its interval beside it.
        num_seeds: the number of seeds of the study. A delta of fewer seeds has a dotted interval.
        margin: the smallest change that matters, in points.
    """
    axis.axvspan(-margin, margin, **MARGIN)
    axis.axvline(0, color=BASELINE, linewidth=1)
    for place, row in enumerate(rows.to_dict("records")):
        if np.isnan(row["absolute_delta"]):
            axis.annotate("missing", (0, place), (4, 0), textcoords="offset points", va="center", fontsize=SMALL)
            continue
        points = [100 * value for value in (row["absolute_delta"], row["ci_low"], row["ci_high"])]
        style = mark_style(row["verdict"]) | (FEWER_SEEDS if row["seeds"] < num_seeds else {})
        low, high = (points[0] if np.isnan(end) else end for end in points[1:])
        axis.plot([low, points[0], high], [place] * 3, solid_capstyle="butt", markevery=[1], **style)
        if with_text:
            text = (
                "{:+.1f}  [{:+.1f}, {:+.1f}]".format(*points) if not np.isnan(row["ci_low"]) else f"{points[0]:+.1f}"
            )
            place_of = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": SMALL}
            mark = MARKS[row["verdict"]]
            weight = "bold" if mark.is_decided else "normal"
            axis.annotate(text, (1.02, place), color=mark.color, weight=weight, **place_of)
    axis.grid(axis="y", visible=False)


def by_mean(accuracy: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the instances in the order of their mean delta over the cells: the highest first, missing ones last."""
    means = accuracy.groupby(INSTANCE, sort=False)["absolute_delta"].mean()
    return list(means.sort_values(ascending=False, kind="stable", na_position="last").index)


def forest_legend(accuracy: pd.DataFrame, num_seeds: int, margin: float) -> list[Any]:
    """Return the entries of the legend of a forest: what the band, the colors and the markers in it mean."""
    tested = accuracy.dropna(subset="absolute_delta")
    found = set(tested["verdict"])
    entries = [sample(verdict, **mark_style(verdict)) for verdict in MARKS if verdict in found]
    if (tested["seeds"] < num_seeds).any():
        entries.append(sample(f"fewer than {num_seeds} seeds: runs are missing", color=BASELINE, **FEWER_SEEDS))
    return [*entries, Patch(label=f"change of less than {margin:g} point{'' if margin == 1 else 's'}", **MARGIN)]


@styled
def forest(sources: Sources, tables: Tables, narrow: bool = False) -> Figure:
    """Draw every accuracy delta to the baseline with its interval: a panel per cell, all with the same rows.

    Args:
        sources: the sources of the report.
        tables: the tables of the report.
        narrow: draw for the screen of a phone, one panel below the other.
    """
    num_seeds, margin = len(sources.config["grid"]["seed"]), sources.config["analysis"]["margin"]
    accuracy = tables["deltas"][tables["deltas"]["metric"] == "accuracy"]
    cells, order, grid = cells_of(accuracy), by_mean(accuracy), grid_of(accuracy)
    columns = 1 if narrow else min(len(cells), 3)
    rows = -(-len(cells) // columns)
    height = 0.75 + rows * ((0.5 if columns > 1 else 0.35) + (0.165 if rows > 1 else 0.19) * len(order))
    figure, axes = panels(rows, columns, height, NARROW_WIDTH if narrow else FOREST_WIDTH, sharex=True, sharey=True)
    for axis, cell in zip(axes.flat, cells, strict=False):
        deltas = rows_of(accuracy, cell).set_index(INSTANCE).loc[order].reset_index()
        draw_deltas(axis, deltas, len(cells) == 1 and not narrow, num_seeds, margin)
        axis.set_title(f"{cell[0]}{chr(10) if columns > 1 else ' '}trained on {cell[1]}")
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    names = [instance_label(dict(zip(INSTANCE, values, strict=True)), grid) for values in order]
    axes[0, 0].set_yticks(range(len(order)), names)
    axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
    bins = 5 if narrow else 10 // columns
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=bins, steps=[1, 2, 5, 10], min_n_ticks=4))
    name_axes(figure, "delta, percentage points" if columns < 3 else "delta, points")
    legend_row(figure, forest_legend(accuracy, num_seeds, margin))
    return figure


@styled
def heat_map(sources: Sources, tables: Tables) -> Figure:
    """Draw the accuracy delta of the whole grid: a row per cell, a column per instance.

    A frame marks what is better or worse, a dotted frame what is equivalent.
    """
    deltas = tables["deltas"][tables["deltas"]["metric"] == "accuracy"]
    cells = cells_of(deltas)
    instances = list(deltas[INSTANCE].drop_duplicates().itertuples(index=False, name=None))
    # The strongest color is that of a delta as large as the intervals reach, so that noise is pale.
    sizes = [deltas["absolute_delta"].abs().max(), (deltas["ci_high"] - deltas["ci_low"]).max() / 2]
    limit = max([1.0, *(100 * size for size in sizes if not np.isnan(size))])
    several = len(instances) > 9  # too many for intervals, and for names that are written from left to right
    with_interval = not several
    labels = [instance_label(dict(zip(INSTANCE, values, strict=True)), grid_of(deltas)) for values in instances]
    figure, axes = panels(1, 1, 1.1 + 0.42 * len(cells) + several * 0.06 * max(map(len, labels)))
    axis = axes[0, 0]
    axis.grid(visible=False)
    axis.set_facecolor("#dddddd")
    values = np.full((len(cells), len(instances)), np.nan)
    for row in deltas.to_dict("records"):
        y = cells.index((row["model"], row["dataset"]))
        x = instances.index(tuple(row[name] for name in INSTANCE))
        if np.isnan(row["absolute_delta"]):
            axis.text(x, y, "missing", ha="center", va="center", fontsize=SMALL)
            continue
        value = values[y, x] = 100 * row["absolute_delta"]
        text = f"{value:+.1f}"
        if with_interval and not np.isnan(row["ci_low"]):
            text += f"\n{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}"
        decided = row["verdict"] in ("better", "worse")
        color, weight = ("white" if abs(value) > 0.7 * limit else "black"), ("bold" if decided else "normal")
        axis.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=color, weight=weight)
        if row["verdict"] in FRAMES:
            frame = FRAMES[row["verdict"]]
            axis.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="black", **frame))
    axis.imshow(np.ma.masked_invalid(values), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(instances)), [label.replace(" ", "\n", 1) for label in labels], rotation=90 * several)
    axis.set_yticks(range(len(cells)), ["\n".join(cell) for cell in cells])
    counts, tested = deltas["verdict"].value_counts().to_dict(), int(deltas["absolute_delta"].notna().sum())
    framed, dotted = counts.get("better", 0) + counts.get("worse", 0), counts.get("equivalent", 0)
    frames = [f"Framed: better or worse ({framed} of {tested})."] if framed else []
    frames += [f"Dotted: equivalent ({dotted} of {tested})."] if dotted else []
    others = {0: "Nothing can be compared yet.", 1: "It is inconclusive."}.get(
        tested, f"All {tested} are inconclusive."
    )
    if WAITING in counts:
        others = "Interim: the verdicts wait for the last run."
    axis.set_title(
        f"Accuracy delta in percentage points{', and its interval' if with_interval else ''}. "
        "Purple: higher than the baseline. Orange: lower.\n"
        f"{' '.join(frames) or others}"
    )
    return figure


# ---- figures 1 to 3 of the paper ----------------------------------------------------------------------


def draw_metric(axis: Any, rows: pd.DataFrame, own: pd.DataFrame) -> None:
    """Draw one metric of one cell against the skip ratio, with the interval of each instance's delta.

    Args:
        axis: the panel.
        rows: the deltas of the metric, a row per instance.
        own: one row with the mean, the lowest and the highest value of the baseline itself.
    """
    ratios = sorted(rows["skip_ratio"].unique())
    axis.set_xticks(range(len(ratios)), [percent(ratio) for ratio in ratios])
    axis.set_xlim(-0.5, len(ratios) - 0.5)
    if rows["instance"].isna().all():
        mark_missing(axis)
        return
    if own["max"].iloc[0] > own["min"].iloc[0]:
        band = {"color": BASELINE, "alpha": 0.12, "linewidth": 0}
        axis.axhspan(own["min"].iloc[0], own["max"].iloc[0], label="the baseline's own interval", **band)
    axis.axhline(rows["baseline"].mean(), color=BASELINE, linestyle="--", linewidth=1.2, label=BASELINE_NAME)
    for series in series_of(rows):
        reach = errors(series.rows, "absolute_delta", "ci_low", "ci_high")
        reach[0] = reach[0].clip(upper=series.rows["instance"])  # no metric here is below 0
        exact = series.rows["ci_low"].isna().all()
        axis.errorbar(
            series.rows["skip_ratio"].map(ratios.index) + 0.12 * series.offset,
            series.rows["instance"],
            yerr=None if exact else reach,
            linewidth=1.2,
            elinewidth=0.9,
            capsize=2.5,
            markerfacecolor="white" if exact else series.style["color"],
            label=series.label,
            **series.style,
        )
    axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))
    if rows["ci_low"].isna().all():
        axis.set_title("one seed: no interval", fontsize=SMALL, color=BASELINE, loc="right")


def draw_measured_speed(axis: Any, rows: pd.DataFrame, ratios: list[float]) -> None:
    """Draw the measured speed of sampling of one model against the skip ratio, with its intervals and its bound.

    Args:
        axis: the panel.
        rows: the rows of the model in the table of the measured speed, in the order of the skip ratios.
        ratios: the skip ratios of the study.
    """
    own, skipping = rows[rows["num_skipped"] == 0].iloc[0], rows[rows["num_skipped"] > 0]
    baseline, places = own["tokens_per_second"], range(len(ratios))
    scaled = skipping[["speed_up", "ci_low", "ci_high", "bound"]] * baseline
    axis.axhline(baseline, color=BASELINE, linestyle="--", linewidth=1.2, label=BASELINE_NAME)
    axis.plot(places, scaled["bound"], label="bound N / (N - k)", marker="_", markersize=12, **BOUND)
    reach = errors(scaled, "speed_up", "ci_low", "ci_high")
    style = {"color": "black", "marker": "X", "markersize": 5, "linewidth": 1.2, "elinewidth": 0.9, "capsize": 2.5}
    axis.errorbar(places, scaled["speed_up"], yerr=reach, label="all mitigations, measured alone", **style)
    axis.set_xticks(places, [percent(ratio) for ratio in ratios])
    axis.set_xlim(-0.5, len(ratios) - 0.5)


def baseline_range(sources: Sources, tables: Tables, model: str, dataset: str, metric: str) -> pd.DataFrame:
    """Return the baseline's own mean, lowest and highest value: an interval over problems, or the range of seeds."""
    if metric == "accuracy":
        stages = tables["stages"]
        cell = (stages["model"] == model) & (stages["dataset"] == dataset)
        own = stages[cell & (stages["product"] == "train (baseline)")]
        return own.rename(columns={"accuracy": "mean", "ci_low": "min", "ci_high": "max"})
    runs = overall(sources.results)
    baseline = runs[(runs["product"] == "train") & (runs["skip_ratio"] == 0)]
    values = baseline.loc[(baseline["model"] == model) & (baseline["dataset"] == dataset), metric]
    return pd.DataFrame({"mean": [values.mean()], "min": [values.min()], "max": [values.max()]})


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
    metrics = MEASURED_METRICS if is_measured(sources) else METRICS
    width = min(WIDTH, 2.4 + 3.1 * len(models))
    figure, axes = panels(len(metrics), len(models), 1.75 * len(metrics) + 0.9, width, sharex="col")
    for column, model in zip(axes.T, models, strict=True):
        model_deltas = deltas[deltas["model"] == model]
        for axis, metric in zip(column, metrics, strict=True):
            if metric == "token_speed_tok_s" and is_measured(sources):
                speed = tables["speed"][tables["speed"]["model"] == model].sort_values("num_skipped")
                draw_measured_speed(axis, speed, sorted(model_deltas["skip_ratio"].unique()))
                continue
            own = baseline_range(sources, tables, model, dataset, metric)
            draw_metric(axis, model_deltas[model_deltas["metric"] == metric], own)
        accuracies_in_percent(column[0])
        absent = model_deltas[(model_deltas["metric"] == "accuracy") & model_deltas["instance"].isna()]
        names = [instance_label(row, grid_of(model_deltas)) for row in absent.to_dict("records")]
        note = f"\nmissing: {', '.join(names)}" if 0 < len(names) < 4 else ""
        column[0].set_title(f"{model}, {dataset}{note}")
    for axis, label in zip(axes[:, 0], metrics.values(), strict=True):
        axis.set_ylabel(label)
    name_axes(figure, "skip ratio (share of layers skipped)")
    legend(figure)
    return figure


# ---- accuracy per benchmark ---------------------------------------------------------------------------


@styled
def benchmarks(sources: Sources, tables: Tables) -> Figure:
    """Draw the accuracy on every benchmark: the SFT model, the baseline with its interval, and all instances."""
    results = sources.results[sources.results["product"] != "pretrained"]
    names = list(results["benchmark"].unique())
    figure, cells = cell_panels(results, 2.1, sharey=True)
    ratios = sorted(ratio for ratio in results["skip_ratio"].dropna().unique() if ratio > 0)
    for axis, rows in cells:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
        values = ["accuracy", "ci_low", "ci_high"]
        sft = rows[rows["product"] == "sft"].groupby("benchmark")["accuracy"].mean().reindex(names)
        trained = rows[rows["product"] == "train"]
        own = trained[trained["skip_ratio"] == 0].groupby("benchmark")[values].mean().reindex(names).reset_index()
        axis.plot(range(len(names)), sft, linestyle="", marker="_", markersize=22, color="#E69F00", label="SFT model")
        style = {"linestyle": "", "marker": "*", "markersize": 8, "color": BASELINE, "capsize": 3}
        bars = errors(own, *values)
        axis.errorbar(range(len(names)), own["accuracy"], yerr=bars, label=BASELINE_NAME, **style)
        for series in series_of(trained):
            for place, ratio in enumerate(ratios):
                at = series.rows[series.rows["skip_ratio"] == ratio].groupby("benchmark")["accuracy"].mean()
                offset = 0.1 * series.offset + 0.3 * (place - (len(ratios) - 1) / 2) / max(1, len(ratios) - 1)
                style = series.style | {"linestyle": "", "markersize": 4, "alpha": 0.8}
                axis.plot(np.arange(len(names)) + offset, at.reindex(names), label=series.label, **style)
        if trained.empty:
            mark_missing(axis)
        axis.grid(axis="x", visible=False)
    accuracies_in_percent(figure.axes[0])
    name_axes(figure, "benchmark", "accuracy")
    legend(figure)
    return figure
