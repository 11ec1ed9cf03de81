"""Figures of how far the behavior policy is from the target policy."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import Tables, curves, legend, panels, percent, styled
from nested_reft.report.sources import CELL, INSTANCE, Sources
from nested_reft.report.style import BASELINE

OFF_POLICY_TITLES = {
    "sampling/kl": "KL(mu || pi), nats per token",
    "sampling/acceptance_rate": "Acceptance rate, 1 - TV",
    "sampling/ess": "Effective sample size",
}


def draw_off_policy(axis: Any, runs: pd.DataFrame, metric: str) -> None:
    """Draw one off-policy metric of one cell against the skip ratio: means over seeds, and the band of the seeds."""
    baseline = runs.loc[runs["skip_ratio"] == 0, metric].mean()
    axis.plot(0, baseline, color=BASELINE, marker="*", markersize=8, linestyle="", label="baseline")
    for label, marks, _, curve in curves(runs):
        seeds = curve.groupby("skip_ratio")[metric].agg(["mean", "min", "max"])
        axis.fill_between(seeds.index, seeds["min"], seeds["max"], alpha=0.15, color=marks["color"], linewidth=1.2)
        axis.plot(seeds.index, seeds["mean"], linewidth=1.2, label=label, **marks)
    axis.set_xticks(sorted(runs["skip_ratio"].unique()))
    axis.xaxis.set_major_formatter(percent)


@styled
def off_policy(sources: Sources, tables: Tables) -> Figure:
    """Draw how far the behavior policy is from the target policy: means over the steps, against the skip ratio."""
    steps = sources.steps
    cells = list(steps.groupby(CELL, sort=False))
    figure, axes = panels(len(cells), len(OFF_POLICY_TITLES), 7.4, 0.7 + 1.9 * len(cells), sharex=True)
    for row, ((model, dataset), cell) in zip(axes, cells, strict=True):
        runs = cell.groupby([*INSTANCE, "seed"])[list(OFF_POLICY_TITLES)].mean().reset_index()
        for axis, (metric, title) in zip(row, OFF_POLICY_TITLES.items(), strict=True):
            draw_off_policy(axis, runs, metric)
            axis.set_title(title)
        row[0].set_ylabel(f"{model},\n{dataset}")
    for axis in axes[-1]:
        axis.set_xlabel("skip ratio")
    legend(figure)
    return figure
