"""The figures of a report, drawn from its tables.

All figures share one style, and their colors remain distinct for color-blind readers. Each function returns a
figure; only `save` writes files.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from itertools import pairwise
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nested_reft.mitigation import MITIGATIONS
from nested_reft.report import style
from nested_reft.report.sources import CELL, INSTANCE
from nested_reft.report.style import BASELINE, PALETTE, STYLE

# A mitigation has the same color and marker in every figure; a new one takes the next.
COLORS = dict(zip(MITIGATIONS, PALETTE, strict=False))
MARKERS = dict(zip(MITIGATIONS, "os^DvPX", strict=False))
PHASE_COLORS = ["#0072B2", "#CC79A7", "#E69F00", "#999999"]
TITLES = {"accuracy": "Accuracy", "token_speed_tok_s": "Token speed", "train_runtime_s": "Run time"}
UNITS = {"accuracy": "share correct", "token_speed_tok_s": "tokens/s", "train_runtime_s": "s"}
OFF_POLICY_TITLES = {
    "sampling/kl": "KL(mu || pi), nats per token",
    "sampling/acceptance_rate": "Acceptance rate, 1 - TV",
    "sampling/ess": "Effective sample size",
}

# ---- what all figures share ---------------------------------------------------------------------------

Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorate a function that draws a figure: it draws in the shared style."""

    @wraps(draw)
    def in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


save = style.save


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


def per_mitigation(rows: pd.DataFrame, shift: float) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Yield (mitigation, offset on the x axis, its rows): points are shifted so that their bars stay visible."""
    for index, (mitigation, mitigation_rows) in enumerate(rows.groupby("mitigation", sort=False)):
        yield str(mitigation), shift * (index - 1), mitigation_rows


# ---- the figures of a study ---------------------------------------------------------------------------


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
    for mitigation, offset, mitigation_rows in per_mitigation(rows, 0.07 * step):
        axis.errorbar(
            mitigation_rows["skip_ratio"] + offset,
            mitigation_rows["instance"],
            yerr=errors(mitigation_rows, "absolute_delta", "ci_low", "ci_high"),
            linewidth=1.2,
            elinewidth=0.7,
            capsize=2,
            label=mitigation,
            **points(mitigation),
        )


@styled
def dataset_figure(deltas: pd.DataFrame) -> Figure:
    """Draw Figures 1-3 of the paper: metrics against the skip ratio, a column per model.

    The bar of an instance is the interval of its delta to the baseline. An instance whose bar does not reach the
    dashed line differs from the baseline, before any correction for the number of comparisons.

    Args:
        deltas: the deltas of one dataset, a row per instance and metric.
    """
    models = list(deltas["model"].unique())
    figure, axes = panels(len(UNITS), len(models), 0.9 + 3.0 * len(models), 1.9 * len(UNITS) + 0.5, sharex=True)
    for column, model in zip(axes.T, models, strict=True):
        model_deltas = deltas[deltas["model"] == model]
        for axis, metric in zip(column, UNITS, strict=True):
            draw_metric(axis, model_deltas[model_deltas["metric"] == metric])
        absent = model_deltas[(model_deltas["metric"] == "accuracy") & model_deltas["instance"].isna()]
        names = [f"{percent(ratio)} {name}" for ratio, name in absent[INSTANCE].values]
        note = f"\nmissing: {', '.join(names)}" if 0 < len(names) < 4 else ""
        column[0].set_title(f"{model}, {deltas['dataset'].iloc[0]}{note}")
        column[-1].set_xlabel("skip ratio (share of layers skipped in roll-outs)")
    for axis, (metric, unit) in zip(axes[:, 0], UNITS.items(), strict=True):
        axis.set_ylabel(f"{TITLES[metric]} [{unit}]")
    legend(figure)
    return figure


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point equals or exceeds in both coordinates, sorted by the first coordinate."""
    return sorted(p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points))


@styled
def frontier(deltas: pd.DataFrame) -> Figure:
    """Draw accuracy against token speed, both as deltas to the baseline, and their Pareto front.

    Args:
        deltas: a row per instance and metric.
    """
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
        for (mitigation, skip_ratio), instance in rows.groupby(["mitigation", "skip_ratio"], sort=False):
            axis.errorbar(
                instance["relative_delta_speed"],
                instance["absolute_delta"],
                xerr=errors(instance, *(f"{name}_speed" for name in relative)),
                yerr=errors(instance, "absolute_delta", "ci_low", "ci_high"),
                linestyle="",
                elinewidth=0.5,
                label=mitigation if skip_ratio == ratios[-1] else None,
                **points(str(mitigation)) | {"markersize": sizes[skip_ratio]},
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
def heat_map(deltas: pd.DataFrame) -> Figure:
    """Draw the accuracy delta of the whole grid: a row per cell, a column per instance.

    Args:
        deltas: the accuracy deltas, a row per instance.
    """
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
    labels = [f"{percent(ratio)} {name}" for ratio, name in instances]
    axis.set_xticks(range(len(instances)), labels, rotation=45, ha="right")
    axis.set_yticks(range(len(cells)), [f"{model}, {dataset}" for model, dataset in cells])
    axis.set_xlabel("skip ratio and mitigation")
    figure.colorbar(image, ax=axis, label="accuracy delta, points")
    return figure


@styled
def speed_up(efficiency: pd.DataFrame) -> Figure:
    """Draw the sampling speed-up over the baseline, and its upper bounds if k of N layers are skipped.

    Args:
        efficiency: a row per instance.
    """
    figure, cells = cell_panels(efficiency, 2.5, 2.1, sharey=True)
    for axis, rows in cells:
        bounds = rows.groupby("num_skipped")[["bound", "bound_with_lm_head"]].first()
        bounds.loc[0] = 1.0
        bounds = bounds.sort_index()
        for name, label, line in (
            ("bound", "N / (N - k)", "-"),
            ("bound_with_lm_head", "with output projection", "--"),
        ):
            axis.plot(bounds.index, bounds[name], color=BASELINE, linewidth=1, linestyle=line, label=label)
        for mitigation, offset, mitigation_rows in per_mitigation(rows, 0.1):
            axis.errorbar(
                mitigation_rows["num_skipped"] + offset,
                mitigation_rows["sampling_speed_up"],
                yerr=errors(mitigation_rows, "sampling_speed_up", "speed_up_ci_low", "speed_up_ci_high"),
                linestyle="",
                elinewidth=0.7,
                capsize=2,
                label=mitigation,
                **points(mitigation),
            )
        if rows["sampling_speed_up"].isna().all():
            mark_missing(axis)
        axis.set_xticks(bounds.index)
        axis.set_xlabel("k, layers skipped in roll-outs")
        axis.set_ylabel("sampling speed-up, x")
    legend(figure)
    return figure


@styled
def time_split(runs: pd.DataFrame, phases: Mapping[str, str]) -> Figure:
    """Draw the time of each phase of a run against the number of layers skipped.

    Args:
        runs: a row per run, with one column of seconds per phase.
        phases: column -> name in the legend, from the bottom of the stack to its top.
    """
    figure, cells = cell_panels(runs, 2.5, 2.0, sharey="row")
    for axis, rows in cells:
        if rows.empty:
            mark_missing(axis)
            continue
        means = rows.groupby("num_skipped")[list(phases)].mean()
        labels = [f"{k:g}" if k else "0\n(baseline)" for k in means.index]
        bottom = pd.Series(0.0, index=means.index)
        for color, (column, name) in zip(PHASE_COLORS, phases.items(), strict=True):
            axis.bar(labels, means[column], bottom=bottom, color=color, label=name, width=0.6)
            bottom += means[column]
        axis.set_xlabel("k, layers skipped in roll-outs")
        axis.set_ylabel("seconds per run")
        axis.grid(axis="x", visible=False)
    legend(figure)
    return figure


def draw_off_policy(axis: Any, runs: pd.DataFrame, metric: str, mitigations: list[str]) -> None:
    """Draw one off-policy metric of one cell against the skip ratio: means over seeds, and the band of the seeds."""
    baseline = runs.loc[runs["skip_ratio"] == 0, metric].mean()
    axis.plot(0, baseline, color=BASELINE, marker="*", markersize=8, linestyle="", label="baseline")
    for mitigation in mitigations:
        instances = runs[(runs["skip_ratio"] > 0) & (runs["mitigation"] == mitigation)]
        seeds = instances.groupby("skip_ratio")[metric].agg(["mean", "min", "max"])
        axis.fill_between(seeds.index, seeds["min"], seeds["max"], alpha=0.15, color=COLORS[mitigation], linewidth=1.2)
        axis.plot(seeds.index, seeds["mean"], linewidth=1.2, label=mitigation, **points(mitigation))
    axis.set_xticks(sorted(runs["skip_ratio"].unique()))
    axis.xaxis.set_major_formatter(percent)


@styled
def off_policy(steps: pd.DataFrame) -> Figure:
    """Draw how far the behavior policy is from the target policy: means over the steps, against the skip ratio.

    Args:
        steps: a row per run and step, with `sampling/kl`, `sampling/acceptance_rate` and `sampling/ess`.
    """
    cells = list(steps.groupby(CELL, sort=False))
    mitigations = list(steps.loc[steps["skip_ratio"] > 0, "mitigation"].unique())
    figure, axes = panels(len(cells), len(OFF_POLICY_TITLES), 7.4, 0.7 + 1.9 * len(cells), sharex=True)
    for row, ((model, dataset), cell) in zip(axes, cells, strict=True):
        runs = cell.groupby([*INSTANCE, "seed"])[list(OFF_POLICY_TITLES)].mean().reset_index()
        for axis, (metric, title) in zip(row, OFF_POLICY_TITLES.items(), strict=True):
            draw_off_policy(axis, runs, metric, mitigations)
            axis.set_title(title)
        row[0].set_ylabel(f"{model},\n{dataset}")
    for axis in axes[-1]:
        axis.set_xlabel("skip ratio")
    legend(figure)
    return figure


def draw_rewards(axis: Any, steps: pd.DataFrame, label: str, color: str) -> None:
    """Draw the reward of one instance of one cell: a thin line per step, a thick running mean, a band of the seeds."""
    seeds = steps.pivot(index="step", columns="seed", values="reward")
    if seeds.empty:
        axis.text(0.02, 0.02, f"{label}: missing", transform=axis.transAxes, fontsize=6, color=color)
        return
    smooth = seeds.rolling(max(1, len(seeds) // 8), min_periods=1, center=True).mean()
    axis.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, linewidth=0)
    axis.plot(seeds.index, seeds.mean(axis=1), color=color, alpha=0.2, linewidth=0.7)
    axis.plot(smooth.index, smooth.mean(axis=1), color=color, linewidth=1.4, label=label)


@styled
def reward_curves(steps: pd.DataFrame) -> Figure:
    """Draw the mean reward of the sampled completions over training, a panel per skip ratio.

    Thin lines are single steps and thick lines running means, both averaged over seeds. The band is from the lowest
    to the highest running mean of a seed.

    Args:
        steps: columns model, dataset, skip_ratio, mitigation, seed, step and reward.
    """
    cells = list(steps.groupby(CELL, sort=False))
    ratios = sorted(ratio for ratio in steps["skip_ratio"].unique() if ratio > 0)
    mitigations = list(steps.loc[steps["skip_ratio"] > 0, "mitigation"].unique())
    size = 0.6 + 2.4 * len(ratios), 2.1 * len(cells) + 0.5
    figure, axes = panels(len(cells), len(ratios), *size, sharex=True, sharey=True)
    for row, ((model, dataset), cell) in zip(axes, cells, strict=True):
        for axis, ratio in zip(row, ratios, strict=True):
            draw_rewards(axis, cell[cell["skip_ratio"] == 0], "baseline", BASELINE)
            nested = cell[cell["skip_ratio"] == ratio]
            for mitigation in mitigations:
                draw_rewards(axis, nested[nested["mitigation"] == mitigation], mitigation, COLORS[mitigation])
            axis.set_title(f"{model}, {dataset}\n{percent(ratio)} skipped")
        row[0].set_ylabel("reward (share correct)")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    legend(figure)
    return figure


# ---- the figure of a diagnosis ------------------------------------------------------------------------


@styled
def diagnosis(by_ratio: pd.DataFrame, by_layer: pd.DataFrame) -> Figure:
    """Draw how far nested roll-outs are from the full model: by skip ratio, with the spread of draws, and by layer.

    Args:
        by_ratio: a row per skip ratio, with the lowest and the highest `kl` and `reward` of a draw of layers.
        by_layer: columns layer and kl, a row per layer that may be skipped.
    """
    figure, axes = panels(1, 4, 9.6, 2.4, width_ratios=[1, 1, 1, 2])
    kl, reward, overlap, layers = axes[0]
    positions = 100 * by_ratio["skip_ratio"]
    for axis, name, title in ((kl, "kl", "KL(mu || pi), nats per token"), (reward, "reward", "Share correct")):
        low, high = by_ratio[f"{name}_lowest"], by_ratio[f"{name}_highest"]
        axis.fill_between(positions, low, high, color=BASELINE, alpha=0.15, linewidth=0, label="draws of layers")
        axis.plot(positions, by_ratio[name], color=BASELINE, marker="o", markersize=4, linewidth=1.2, label="mean")
        axis.set_title(title)
        axis.legend()
    for name, color in (("acceptance_rate", "#009E73"), ("ess", "#CC79A7")):
        overlap.plot(positions, by_ratio[name], color=color, marker="o", markersize=4, linewidth=1.2, label=name)
    overlap.set_title("Acceptance rate, sample size")
    overlap.set_ylim(0, 1.05)
    overlap.legend()
    for axis in (kl, reward, overlap):
        axis.set_xlabel("layers skipped, %")
    layers.bar(by_layer["layer"], by_layer["kl"], color="#0072B2", width=0.7)
    layers.set_title("KL(mu || pi) with one layer skipped")
    layers.set_xlabel("layer")
    layers.grid(axis="x", visible=False)
    return figure
