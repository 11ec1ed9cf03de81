"""Figures of how far the behavior policy is from the target policy."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nested_reft.report.figures.common import (
    BASELINE_NAME,
    Tables,
    cells_of,
    largest_ratio,
    legend,
    mark_missing,
    name_axes,
    name_row,
    panels,
    percent,
    rows_of,
    seed_range,
    series_of,
    spread_of,
    styled,
)
from nested_reft.report.off_policy import ACCEPTANCE, ESS, kl_column, run_medians
from nested_reft.report.sources import Sources, grid_of
from nested_reft.report.style import BASELINE

KL_TITLE = "KL(μ ‖ π)\n[nats per token]"
ACCEPTANCE_TITLE = "acceptance rate\n(1 - total variation)"
ESS_TITLE = "effective sample size\n(share of the tokens)"


def draw_off_policy(axis: Any, runs: pd.DataFrame, metric: str, ratios: list[float]) -> None:
    """Draw one off-policy metric of one cell against the skip ratio: means over seeds, lowest and highest seed."""
    baseline = runs.loc[runs["skip_ratio"] == 0, metric].mean()
    axis.plot(0, baseline, color=BASELINE, marker="*", markersize=9, linestyle="", label=BASELINE_NAME, clip_on=False)
    for series in series_of(runs):
        seeds = seed_range(series.rows, "skip_ratio", metric)
        reach = spread_of(seeds)
        reach[0] = reach[0].clip(upper=seeds["mean"].clip(lower=0))  # none of these metrics can be below 0
        style = {"elinewidth": 0.9, "capsize": 2.5, "linewidth": 1.2, "label": series.label}
        places = seeds.index.map(ratios.index) + 0.1 * series.offset
        bars = reach if series.rows["seed"].nunique() > 1 else None
        axis.errorbar(places, seeds["mean"].clip(lower=0), yerr=bars, **style, **series.style)
    axis.set_xticks(range(len(ratios)), [percent(ratio) for ratio in ratios])


@styled
def off_policy(sources: Sources, tables: Tables) -> Figure:
    """Draw how far the behavior policy is from the target policy: medians over the steps, against the skip ratio."""
    steps = sources.steps
    titles = {kl_column(steps): KL_TITLE, ACCEPTANCE: ACCEPTANCE_TITLE, ESS: ESS_TITLE}
    medians = run_medians(steps)
    cells, ratios = cells_of(steps), [0.0, *sorted(grid_of(steps)["skip_ratio"])]
    size = 1.1 + max(1.15, 2.2 - 0.3 * len(cells)) * len(cells)
    figure, axes = panels(len(cells), len(titles), size, sharex=True, sharey="col")
    for row, cell in zip(axes, cells, strict=True):
        for axis, metric in zip(row, titles, strict=True):
            draw_off_policy(axis, rows_of(medians, cell), metric, ratios)
        name_row(row[-1], cell)
    for axis, title in zip(axes[0], titles.values(), strict=True):
        axis.set_title(title)
    axes[0, 0].set_ylim(bottom=0)
    name_axes(figure, "skip ratio")
    legend(figure)
    return figure


def draw_over_steps(axis: Any, rows: pd.DataFrame, metric: str) -> None:
    """Draw the running median of a metric over the steps, after the mean of the seeds, for all lines of a panel."""
    window = max(1, rows["step"].nunique() // 8)

    def smooth(of_runs: pd.DataFrame) -> pd.Series:
        means = of_runs.groupby("step")[metric].mean()
        # no metric here can be below 0, but the k1 estimate of the KL can
        return means.rolling(window, min_periods=1, center=True).median().clip(lower=0)

    baseline = smooth(rows[rows["skip_ratio"] == 0])
    # drawn over the axis, on which its KL of 0 is
    axis.plot(baseline.index, baseline, color=BASELINE, linewidth=2, label=BASELINE_NAME, clip_on=False, zorder=3)
    for series in series_of(rows):
        means = smooth(series.rows)
        style = {name: series.style[name] for name in ("color", "linestyle")}
        marks = {"marker": series.style["marker"], "markersize": 4, "markevery": max(1, len(means) // 6)}
        axis.plot(means.index, means, linewidth=1.2, label=series.label, **style, **marks)


@styled
def off_policy_steps(sources: Sources, tables: Tables) -> Figure | str:
    """Draw KL, effective sample size and entropy over the steps, at the largest skip ratio."""
    steps = sources.steps
    titles = {kl_column(steps): KL_TITLE, ESS: ESS_TITLE}
    if "entropy" in steps and steps["entropy"].notna().any():
        titles["entropy"] = "entropy of the target policy\n[nats per token]"
    cells = cells_of(steps)
    size = 1.1 + max(1.15, 2.2 - 0.3 * len(cells)) * len(cells)
    figure, axes = panels(len(cells), len(titles), size, sharex=True, sharey="col")
    for row, (cell, rows) in zip(axes, largest_ratio(steps), strict=True):
        for axis, metric in zip(row, titles, strict=True):
            draw_over_steps(axis, rows, metric)
            if rows.empty:
                mark_missing(axis)
        name_row(row[-1], cell)
    for axis, title in zip(axes[0], titles.values(), strict=True):
        axis.set_title(title)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    name_axes(figure, "optimizer step")
    legend(figure)
    return figure


@styled
def token_weights(sources: Sources, tables: Tables) -> Figure | str:
    """Draw the histogram of token weights h(r): a row per model, a column per skip ratio, a line per mitigation."""
    counts = sources.details.token_weights
    if counts.empty:
        return "The sources of this report hold no token weights, which earlier versions did not record."
    models, ratios = list(counts["model"].unique()), sorted(grid_of(counts)["skip_ratio"])
    figure, axes = panels(len(models), len(ratios), 0.9 + 1.9 * len(models), sharex=True, sharey=True)
    for row, model in zip(axes, models, strict=True):
        for axis, ratio in zip(row, ratios, strict=True):
            rows = counts[(counts["model"] == model) & (counts["skip_ratio"] == ratio)]
            for series in series_of(rows):
                tokens = series.rows.groupby("weight")["tokens"].sum()
                share = (tokens / tokens.sum()).where(lambda share: share > 0)
                style = {name: series.style[name] for name in ("color", "marker", "linestyle", "fillstyle")}
                axis.plot(share.index, share, linewidth=1.2, markersize=3.5, label=series.label, **style)
            if rows.empty:
                mark_missing(axis)
            axis.axvline(1, color=BASELINE, linewidth=0.6)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_title(f"{model}, {percent(ratio)} skipped")
    name_axes(figure, "weight h(r) of a token", "share of the tokens")
    legend(figure)
    return figure
