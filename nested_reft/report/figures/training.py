"""Figures of training: rewards over steps, time and tokens; the harm by each skipped layer; the stages."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nested_reft.report.figures.common import (
    BASELINE_NAME,
    Tables,
    accuracies_in_percent,
    cell_panels,
    cells_of,
    largest_ratio,
    legend,
    legend_row,
    mark_missing,
    name_axes,
    name_row,
    panels,
    percent,
    rows_of,
    sample,
    series_of,
    styled,
)
from nested_reft.report.layer_harm import layer_harm
from nested_reft.report.sources import CELL, Sources, grid_of
from nested_reft.report.style import BASELINE, PALETTE, SMALL

# ---- rewards over the steps ---------------------------------------------------------------------------


def running_means(steps: pd.DataFrame, value: str = "reward") -> pd.DataFrame:
    """Return the running mean over an eighth of the steps: a row per step, a column per seed."""
    seeds = steps.pivot(index="step", columns="seed", values=value)
    return seeds.rolling(max(1, len(seeds) // 8), min_periods=1, center=True).mean()


def line_of(style: dict[str, Any]) -> dict[str, Any]:
    """Return the style of a series as a line without markers."""
    return {name: style[name] for name in ("color", "linestyle")}


def draw_rewards(axis: Any, baseline: pd.DataFrame, nested: pd.DataFrame) -> None:
    """Draw running means of the reward: the baseline with the band of its seeds, and the mean of each series."""
    if len(baseline):
        smooth = running_means(baseline)
        if smooth.shape[1] > 1:
            band = {"color": BASELINE, "alpha": 0.15, "linewidth": 0}
            axis.fill_between(
                smooth.index, smooth.min(axis=1), smooth.max(axis=1), label="seeds of the baseline", **band
            )
        axis.plot(smooth.index, smooth.mean(axis=1), color=BASELINE, linewidth=2, label=BASELINE_NAME)
    for series in series_of(nested):
        smooth = running_means(series.rows)
        axis.plot(smooth.index, smooth.mean(axis=1), linewidth=1.3, label=series.label, **line_of(series.style))
    if nested.empty:
        mark_missing(axis)


@styled
def reward_curves(sources: Sources, tables: Tables) -> Figure:
    """Draw the mean reward of the sampled completions over training, a panel per skip ratio.

    Lines are running means over an eighth of the steps, averaged over seeds. The band is from the lowest to the
    highest running mean of a seed of the baseline.
    """
    steps = sources.steps
    cells, ratios = cells_of(steps), sorted(grid_of(steps)["skip_ratio"])
    size = 1.1 + max(1.2, 2.4 - 0.3 * len(cells)) * len(cells)
    figure, axes = panels(len(cells), len(ratios), size, sharex=True, sharey="row")
    for row, cell in zip(axes, cells, strict=True):
        rows = rows_of(steps, cell)
        for axis, ratio in zip(row, ratios, strict=True):
            draw_rewards(axis, rows[rows["skip_ratio"] == 0], rows[rows["skip_ratio"] == ratio])
        name_row(row[-1], cell)
    for axis, ratio in zip(axes[0], ratios, strict=True):
        axis.set_title(f"{percent(ratio)} of the layers skipped")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    name_axes(figure, "optimizer step", "mean reward")
    legend(figure)
    return figure


@styled
def reward_cost(sources: Sources, tables: Tables) -> Figure | str:
    """Draw the reward against the time and the tokens spent, for the baseline and the largest skip ratio."""
    steps = sources.steps
    if "seconds" not in steps or steps["seconds"].isna().all():
        return "The sources of this report hold no times of steps, which earlier versions did not collect."
    by_run = steps.sort_values("step").groupby([*CELL, "skip_ratio", *series_axes(steps), "seed"])
    steps = steps.assign(minutes=by_run["seconds"].cumsum() / 60, tokens=by_run["generated_tokens"].cumsum() / 1000)
    costs = {"minutes": "minutes of training", "tokens": "thousands of sampled tokens"}
    cells = cells_of(steps)
    size = 0.9 + max(1.5, 2.4 - 0.3 * len(cells)) * len(cells)
    figure, axes = panels(len(cells), len(costs), size, sharex="col", sharey="row")
    for row, (cell, rows) in zip(axes, largest_ratio(steps), strict=True):
        for axis, cost in zip(row, costs, strict=True):
            draw_cost(axis, rows, cost)
        name_row(row[-1], cell)
    for axis, name in zip(axes[-1], costs.values(), strict=True):
        axis.set_xlabel(name)
    figure.supylabel("mean reward", fontsize=9)
    legend(figure)
    return figure


def series_axes(steps: pd.DataFrame) -> list[str]:
    """Return the axes of an instance other than the skip ratio."""
    return [axis for axis in grid_of(steps) if axis != "skip_ratio"]


def draw_cost(axis: Any, rows: pd.DataFrame, cost: str) -> None:
    """Draw the running mean of the reward of the baseline and of each series against its mean cost so far."""
    lines = [(BASELINE_NAME, {"color": BASELINE, "linewidth": 2}, rows[rows["skip_ratio"] == 0])]
    lines += [(series.label, line_of(series.style) | {"linewidth": 1.3}, series.rows) for series in series_of(rows)]
    for label, style, runs in lines:
        if len(runs):
            axis.plot(runs.groupby("step")[cost].mean(), running_means(runs).mean(axis=1), label=label, **style)
    axis.set_xlim(left=0)


# ---- the harm by each skipped layer -------------------------------------------------------------------


@styled
def layers(sources: Sources, tables: Tables) -> Figure | str:
    """Draw the mean reward of the steps that skipped a layer, for each layer, beside the mean of all nested steps."""
    steps = sources.steps
    if "skipped_layers" not in steps or steps["skipped_layers"].isna().all():
        return "The sources of this report hold no skipped layers, which earlier versions did not collect."
    harm = layer_harm(steps)
    figure, cells = cell_panels(harm, 2.0, sharex=True, sharey=True)
    for axis, rows in cells:
        if rows.empty:
            mark_missing(axis)
            continue
        worst = rows["reward"].idxmin()
        colors = [PALETTE[1] if index == worst else PALETTE[0] for index in rows.index]
        error = {"ecolor": BASELINE, "elinewidth": 0.9, "capsize": 1.5}
        axis.bar(rows["layer"], rows["reward"], yerr=rows["interval"], color=colors, width=0.75, error_kw=error)
        axis.axhline(rows["all_nested"].iloc[0], color="black", linestyle="--", linewidth=1.2)
        axis.axhline(rows["baseline"].iloc[0], color=BASELINE, linewidth=2)
        axis.grid(axis="x", visible=False)
    name_axes(figure, "skipped layer (0 is the first)", "mean reward of the steps")
    handles = [
        sample("steps that skip this layer", color=PALETTE[0], marker="s", linestyle="", markersize=8),
        sample("the layer with the lowest reward", color=PALETTE[1], marker="s", linestyle="", markersize=8),
        sample("all steps that skip layers", color="black", linestyle="--", linewidth=1.2),
        sample(BASELINE_NAME, color=BASELINE, linewidth=2),
    ]
    legend_row(figure, handles)
    return figure


# ---- the stages ---------------------------------------------------------------------------------------

STAGES = {"pretrained": "pretrained", "sft": "after SFT", "train (baseline)": "after training\n(baseline)"}


@styled
def sft_stages(sources: Sources, tables: Tables) -> Figure:
    """Draw the SFT loss over its steps, and the accuracy of each cell after each stage."""
    losses, stages = sources.details.sft_steps, tables["stages"]
    accuracy = tables["deltas"][tables["deltas"]["metric"] == "accuracy"]
    cells = cells_of(stages)
    figure, axes = panels(1, 2 if len(losses) else 1, 2.9, 8.6 if len(losses) else 5.0)
    places = range(len(STAGES) + 1)
    for index, cell in enumerate(cells):
        style = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": "os^DvPX"[index % 7],
            "markersize": 5,
            "linewidth": 1.3,
        }
        shift = 0.08 * (index - (len(cells) - 1) / 2)
        rows = rows_of(stages, cell).set_index("product").reindex(list(STAGES))
        reach = [(rows["accuracy"] - rows["ci_low"]).fillna(0), (rows["ci_high"] - rows["accuracy"]).fillna(0)]
        label = ", ".join(cell)
        axis = axes[0, -1]
        axis.errorbar(np.arange(3) + shift, rows["accuracy"], yerr=reach, capsize=2.5, label=label, **style)
        nested = rows_of(accuracy, cell)["instance"].dropna()
        small = style | {"linestyle": "", "markersize": 3, "markerfacecolor": "white"}
        axis.plot(np.full(len(nested), 3 + shift), nested, **small)
        if len(losses):
            runs = rows_of(losses, cell)
            means = running_means(runs, "loss").mean(axis=1) if len(runs) else pd.Series(dtype=float)
            axes[0, 0].plot(means.index, means, color=style["color"], linewidth=1.5)
    axes[0, -1].set_xticks(places, [*STAGES.values(), "after training\n(instances)"], fontsize=SMALL)
    accuracies_in_percent(axes[0, -1])
    axes[0, -1].set_title("accuracy")
    if len(losses):
        axes[0, 0].set_title("SFT loss [nats per token]")
        axes[0, 0].set_xlabel("optimizer step of SFT")
    legend(figure)
    return figure
