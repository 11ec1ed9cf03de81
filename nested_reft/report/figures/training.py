"""Figures of training: rewards over the steps."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import COLORS, CURVE, LINES, Tables, legend, panels, percent, styled
from nested_reft.report.sources import CELL, Sources, grid_of, instance_label
from nested_reft.report.style import BASELINE


def draw_rewards(axis: Any, steps: pd.DataFrame, label: str, color: str, linestyle: str = "-") -> None:
    """Draw the reward of one instance of one cell: a thin line per step, a thick running mean, a band of the seeds."""
    seeds = steps.pivot(index="step", columns="seed", values="reward")
    if seeds.empty:
        axis.text(0.02, 0.02, f"{label}: missing", transform=axis.transAxes, fontsize=6, color=color)
        return
    smooth = seeds.rolling(max(1, len(seeds) // 8), min_periods=1, center=True).mean()
    axis.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, linewidth=0)
    axis.plot(seeds.index, seeds.mean(axis=1), color=color, alpha=0.2, linewidth=0.7)
    axis.plot(smooth.index, smooth.mean(axis=1), color=color, linestyle=linestyle, linewidth=1.4, label=label)


@styled
def reward_curves(sources: Sources, tables: Tables) -> Figure:
    """Draw the mean reward of the sampled completions over training, a panel per skip ratio.

    Thin lines are single steps and thick lines running means, both averaged over seeds. The band is from the lowest
    to the highest running mean of a seed.
    """
    steps = sources.steps
    cells = list(steps.groupby(CELL, sort=False))
    ratios = sorted(ratio for ratio in steps["skip_ratio"].unique() if ratio > 0)
    grid = grid_of(steps)
    curves = steps.loc[steps["skip_ratio"] > 0, CURVE].drop_duplicates().to_dict("records")
    size = 0.6 + 2.4 * len(ratios), 2.1 * len(cells) + 0.5
    figure, axes = panels(len(cells), len(ratios), *size, sharex=True, sharey=True)
    for row, ((model, dataset), cell) in zip(axes, cells, strict=True):
        for axis, ratio in zip(row, ratios, strict=True):
            draw_rewards(axis, cell[cell["skip_ratio"] == 0], "baseline", BASELINE)
            nested = cell[cell["skip_ratio"] == ratio]
            for curve in curves:
                rows = nested[(nested[CURVE] == pd.Series(curve)).all(axis=1)]
                line = LINES[grid["border"].index(curve["border"]) % len(LINES)]
                draw_rewards(axis, rows, instance_label(curve, grid), COLORS[curve["mitigation"]], line)
            axis.set_title(f"{model}, {dataset}\n{percent(ratio)} skipped")
        row[0].set_ylabel("reward (share correct)")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    legend(figure)
    return figure
