"""Figures of the speed: of sampling, of the phases of a run, and of what it buys in accuracy."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nested_reft.report.deltas import trained_runs
from nested_reft.report.figures.common import (
    BASELINE_NAME,
    Tables,
    accuracies_in_percent,
    cell_panels,
    errors,
    legend_row,
    mark_missing,
    name_axes,
    panels,
    percent,
    sample,
    series_of,
    styled,
)
from nested_reft.report.sources import CELL, INSTANCE, PHASES, Sources
from nested_reft.report.speed import is_measured
from nested_reft.report.style import BASELINE, BOUND, LM_HEAD_BOUND, PALETTE, SMALL, WIDTH

PHASE_COLORS = ["#0072B2", "#CC79A7", "#E69F00", "#999999"]
FRONT = {"color": "#56B4E9", "alpha": 0.45, "linewidth": 5, "marker": "o", "markersize": 13}
HIDDEN_SHARE = 0.02  # a phase with less of the time than this is too thin to be seen in a bar


def marker_sizes(table: pd.DataFrame) -> dict[float, float]:
    """Return skip ratio -> the size of a marker, in points, for figures that show a ratio by its size."""
    ratios = sorted(ratio for ratio in table["skip_ratio"].unique() if ratio > 0)
    if len(ratios) == 1:
        return {ratios[0]: 7.0}
    return {ratio: 3.5 + 7 * index / (len(ratios) - 1) for index, ratio in enumerate(ratios)}


def ratio_samples(sizes: dict[float, float]) -> list:
    """Return the entries of a legend that explain the sizes of markers."""
    return [
        sample(f"{percent(ratio)} skipped", color="#bbbbbb", marker="o", linestyle="", markersize=size)
        for ratio, size in sizes.items()
    ]


def series_samples(table: pd.DataFrame) -> list:
    """Return the entries of a legend that explain the colors and the shapes of markers."""
    return [sample(series.label, **series.style | {"linestyle": ""}) for series in series_of(table)]


BOUND_SAMPLES = [
    sample("bound N / (N - k)", **BOUND),
    sample("bound with the output projection", **LM_HEAD_BOUND),
]
BASELINE_SAMPLE = {"color": BASELINE, "marker": "*", "markersize": 10, "linestyle": ""}


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point equals or exceeds in both coordinates, sorted by the first coordinate."""
    return sorted(p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points))


GAIN = ["gain", "gain_ci_low", "gain_ci_high"]


def accuracy_and_gain(sources: Sources, tables: Tables) -> pd.DataFrame:
    """Return the accuracy deltas with the relative gain in speed of each, and the interval of the gain.

    The gain is the measured one of sampling or, where it was not measured, that of the token speed in training.
    """
    deltas, efficiency, keys = tables["deltas"], tables["efficiency"], [*CELL, *INSTANCE]
    if is_measured(sources):
        gains = efficiency[["sampling_speed_up", "speed_up_ci_low", "speed_up_ci_high"]] - 1
        speed = pd.concat([efficiency[keys], gains.set_axis(GAIN, axis=1)], axis=1)
    else:
        relative = ["relative_delta", "relative_ci_low", "relative_ci_high"]
        rows = deltas[deltas["metric"] == "token_speed_tok_s"]
        speed = rows[[*keys, *relative]].set_axis([*keys, *GAIN], axis=1)
    return deltas[deltas["metric"] == "accuracy"].merge(speed, on=keys)


@styled
def frontier(sources: Sources, tables: Tables) -> Figure:
    """Draw accuracy against speed, both as changes from the baseline with their intervals, and their Pareto front.

    Instances that skip equally many layers have the same measured speed: their markers are drawn side by side.
    """
    both = accuracy_and_gain(sources, tables)
    beside = 0.012 * both["gain"].abs().max() if is_measured(sources) else 0.0
    sizes = marker_sizes(both)
    figure, cells = cell_panels(both, 2.3, sharex=True, sharey=True)
    for axis, rows in cells:
        if rows["absolute_delta"].isna().all():
            mark_missing(axis)
            continue
        shift = {index: 2 * beside * series.offset for series in series_of(rows) for index in series.rows.index}
        rows = rows.assign(place=rows["gain"] + pd.Series(shift))
        places = {(0.0, 0.0): 0.0} | {
            (gain, delta): place
            for gain, delta, place in rows[["gain", "absolute_delta", "place"]].dropna().itertuples(index=False)
        }
        front = [(places[point], point[1]) for point in pareto_front(list(places))]
        axis.step(*zip(*front, strict=True), where="pre", zorder=1, **FRONT)
        axis.axhline(0, color=BASELINE, linewidth=0.6)
        axis.axvline(0, color=BASELINE, linewidth=0.6)
        axis.plot(0, 0, zorder=4, **BASELINE_SAMPLE)
        for series in series_of(rows):
            point = series.rows["place"], series.rows["absolute_delta"]
            axis.errorbar(
                *point,
                xerr=errors(series.rows, *GAIN),
                yerr=errors(series.rows, "absolute_delta", "ci_low", "ci_high"),
                linestyle="",
                elinewidth=0.9,
                color=series.style["color"],
                alpha=0.45,
            )
            area = [sizes[ratio] ** 2 for ratio in series.rows["skip_ratio"]]
            marker = {name: series.style[name] for name in ("color", "marker")}
            axis.scatter(*point, s=area, edgecolors="white", linewidths=0.5, zorder=3, **marker)
    axes = [axis for axis, _ in cells]
    axes[0].xaxis.set_major_formatter(percent)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    gain = "measured gain in the speed of sampling" if is_measured(sources) else "change of the token speed"
    name_axes(figure, gain, "accuracy delta, percentage points")
    front_sample = sample("Pareto front", **FRONT)
    star = sample(BASELINE_NAME, **BASELINE_SAMPLE)
    legend_row(figure, [star, *series_samples(both), *ratio_samples(sizes), front_sample])
    return figure


@styled
def accuracy_time(sources: Sources, tables: Tables) -> Figure:
    """Draw the final accuracy of every run against the time that its training took."""
    runs = trained_runs(sources)
    sizes = marker_sizes(runs)
    unit, divisor = ("hours", 3600) if runs["train_runtime_s"].max() > 7200 else ("minutes", 60)
    figure, cells = cell_panels(runs, 2.2)
    for axis, rows in cells:
        if rows.empty:
            mark_missing(axis)
            continue
        baseline = rows[rows["skip_ratio"] == 0]
        axis.plot(baseline["train_runtime_s"] / divisor, baseline["accuracy"], zorder=3, **BASELINE_SAMPLE)
        for series in series_of(rows):
            area = [sizes[ratio] ** 2 for ratio in series.rows["skip_ratio"]]
            marker = {name: series.style[name] for name in ("color", "marker")}
            times = series.rows["train_runtime_s"] / divisor
            axis.scatter(
                times, series.rows["accuracy"], s=area, alpha=0.7, edgecolors="white", linewidths=0.5, **marker
            )
    for axis, _ in cells:
        axis.margins(0.1)  # room for the largest markers
        accuracies_in_percent(axis)
    name_axes(figure, f"time of all training steps, {unit}", "accuracy after training")
    star = sample(BASELINE_NAME, **BASELINE_SAMPLE)
    legend_row(figure, [star, *series_samples(runs), *ratio_samples(sizes)])
    return figure


def draw_measured_speed_up(axis: Any, rows: pd.DataFrame, slope: pd.Series) -> list[Any]:
    """Draw the measured speed-up of one model against the share of its layers skipped; return entries of a legend.

    Args:
        axis: the panel.
        rows: the rows of the model in the table of the measured speed.
        slope: its row in the table of slopes.
    """
    skipping, shares = rows[rows["num_skipped"] > 0], [0.0, rows["share"].max()]
    line, band = {"color": PALETTE[0], "linewidth": 1.2}, {"color": PALETTE[0], "alpha": 0.15, "linewidth": 0}
    points = {"color": PALETTE[0], "marker": "o", "markersize": 5, "linestyle": ""}
    axis.axhline(1, color=BASELINE, linewidth=1.2)
    axis.plot(rows["share"], rows["bound"], **BOUND)
    axis.plot(rows["share"], rows["bound_with_lm_head"], **LM_HEAD_BOUND)
    ends = [[1 + slope[end] * share for share in shares] for end in ("ci_low", "ci_high")]
    axis.fill_between(shares, *ends, **band)
    axis.plot(shares, [1 + slope["slope"] * share for share in shares], **line)
    reach = errors(skipping, "speed_up", "ci_low", "ci_high")
    axis.errorbar(skipping["share"], skipping["speed_up"], yerr=reach, capsize=2.5, elinewidth=0.9, **points)
    counts = zip(rows["num_skipped"], rows["share"], strict=True)
    axis.set_xticks(rows["share"], [f"{k}\n{100 * share:.1f}%" for k, share in counts])
    text = "slope {:.2f} [{:.2f}, {:.2f}]".format(slope["slope"], slope["ci_low"], slope["ci_high"])
    axis.annotate(text, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=SMALL, color=PALETTE[0])
    return [sample("measured, with its interval", **points), sample("line of the slope, with its interval", **line)]


def measured_speed_up(tables: Tables) -> Figure:
    """Draw the measured speed-up of each model against the share of its layers skipped, the slope and the bounds."""
    speed, slopes = tables["speed"], tables["speed_slope"].set_index("model")
    columns = min(3, len(slopes))
    number = -(-len(slopes) // columns)
    figure, axes = panels(number, columns, 0.9 + 2.3 * number, min(WIDTH, 1.6 + 3.5 * columns), sharey=True)
    handles: list[Any] = []
    for axis, (model, slope) in zip(axes.flat, slopes.iterrows(), strict=False):
        handles = draw_measured_speed_up(axis, speed[speed["model"] == model], slope)
        axis.set_title(model)
    for axis in axes.flat[len(slopes) :]:
        axis.set_visible(False)
    name_axes(figure, "k, layers that roll-outs skip, and their share", "speed of sampling / without skipping")
    legend_row(figure, [*handles, *BOUND_SAMPLES])
    return figure


@styled
def speed_up(sources: Sources, tables: Tables) -> Figure:
    """Draw the sampling speed-up over the baseline, and its upper bounds if k of N layers are skipped.

    Without a measurement of speed, it is that of each instance as seen during training. The axis then follows the
    estimates and the bounds, and an interval that is longer than the axis is cut.
    """
    if is_measured(sources):
        return measured_speed_up(tables)
    efficiency = tables["efficiency"]
    shown = efficiency[["sampling_speed_up", "bound"]].stack()
    low, high = min(1.0, shown.min()), max(1.0, shown.max())
    room = 0.35 * (high - low) + 0.02
    figure, cells = cell_panels(efficiency, 2.1, sharey=True)
    for axis, rows in cells:
        bounds = rows.groupby("num_skipped")[["bound", "bound_with_lm_head"]].first()
        counts = [0, *bounds.index]
        places = range(len(counts))
        axis.axhline(1, color=BASELINE, linewidth=1.2)
        axis.plot(places, [1.0, *bounds["bound"]], **BOUND)
        axis.plot(places, [1.0, *bounds["bound_with_lm_head"]], **LM_HEAD_BOUND)
        for series in series_of(rows):
            reach = errors(series.rows, "sampling_speed_up", "speed_up_ci_low", "speed_up_ci_high")
            axis.errorbar(
                series.rows["num_skipped"].map(counts.index) + 0.13 * series.offset,
                series.rows["sampling_speed_up"],
                yerr=None if series.rows["speed_up_ci_low"].isna().all() else reach,
                elinewidth=0.9,
                capsize=2.5,
                **series.style | {"linestyle": ""},
            )
        if rows["sampling_speed_up"].isna().all():
            mark_missing(axis)
        elif rows["speed_up_ci_low"].isna().all():
            axis.set_title("one seed: no interval", fontsize=SMALL, color=BASELINE, loc="right")
        axis.set_xticks(places, counts)
        axis.set_xlim(-0.5, len(counts) - 0.5)
        axis.set_ylim(low - room, high + room)
    name_axes(figure, "k, layers that roll-outs skip", "speed of sampling / baseline's")
    lines = [sample("baseline's speed", color=BASELINE, linewidth=1.2), *BOUND_SAMPLES]
    legend_row(figure, [*lines, *series_samples(efficiency)])
    return figure


@styled
def time_split(sources: Sources, tables: Tables) -> Figure:
    """Draw the time of each phase of a run against the number of layers skipped, and the total of every run."""
    runs = trained_runs(sources)
    share = runs[list(PHASES)].sum() / runs[list(PHASES)].sum().sum()
    large = [column for column in PHASES if share[column] >= HIDDEN_SHARE]
    small = [column for column in PHASES if column not in large]
    figure, cells = cell_panels(runs, 2.0, sharey="row")
    handles = {}
    for axis, rows in cells:
        if rows.empty:
            mark_missing(axis)
            continue
        means = rows.groupby("num_skipped")[list(PHASES)].mean()
        labels = [f"{k:g}" if k else "0\n(baseline)" for k in means.index]
        bottom = pd.Series(0.0, index=means.index)
        for color, (column, name) in zip(PHASE_COLORS, PHASES.items(), strict=True):
            if column in large:
                handles[name] = axis.bar(labels, means[column], bottom=bottom, color=color, label=name, width=0.6)
                bottom += means[column]
        if small:
            name = f"{' and '.join(PHASES[column] for column in small)} ({100 * share[small].sum():.1f} %)"
            others = means[small].sum(axis=1)
            handles[name] = axis.bar(labels, others, bottom=bottom, color="black", label=name, width=0.6)
        totals = rows[list(PHASES)].sum(axis=1)
        places = rows["num_skipped"].map(list(means.index).index)
        shift = places.groupby(places).cumcount() / places.groupby(places).transform("size") - 0.5
        axis.plot(
            places + 0.4 * shift,
            totals,
            linestyle="",
            marker="o",
            color="white",
            markeredgecolor="black",
            markersize=4,
        )
        axis.grid(axis="x", visible=False)
    name_axes(figure, "k, layers that roll-outs skip", "seconds per run")
    dot = sample("one run", linestyle="", marker="o", color="white", markeredgecolor="black", markersize=4)
    legend_row(figure, [*handles.values(), dot])
    return figure
