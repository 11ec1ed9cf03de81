"""Figures of the speed: of sampling, and of the phases of a run."""

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.deltas import trained_runs
from nested_reft.report.figures.common import (
    Tables,
    cell_panels,
    curves,
    errors,
    legend,
    mark_missing,
    styled,
)
from nested_reft.report.sources import PHASES, Sources
from nested_reft.report.style import BASELINE

PHASE_COLORS = ["#0072B2", "#CC79A7", "#E69F00", "#999999"]


@styled
def speed_up(sources: Sources, tables: Tables) -> Figure:
    """Draw the sampling speed-up over the baseline, and its upper bounds if k of N layers are skipped."""
    figure, cells = cell_panels(tables["efficiency"], 2.5, 2.1, sharey=True)
    for axis, rows in cells:
        bounds = rows.groupby("num_skipped")[["bound", "bound_with_lm_head"]].first()
        bounds.loc[0] = 1.0
        bounds = bounds.sort_index()
        for name, label, line in (
            ("bound", "N / (N - k)", "-"),
            ("bound_with_lm_head", "with output projection", "--"),
        ):
            axis.plot(bounds.index, bounds[name], color=BASELINE, linewidth=1, linestyle=line, label=label)
        for label, marks, offset, curve in curves(rows, 0.1):
            axis.errorbar(
                curve["num_skipped"] + offset,
                curve["sampling_speed_up"],
                yerr=errors(curve, "sampling_speed_up", "speed_up_ci_low", "speed_up_ci_high"),
                linestyle="",
                elinewidth=0.7,
                capsize=2,
                label=label,
                **marks,
            )
        if rows["sampling_speed_up"].isna().all():
            mark_missing(axis)
        axis.set_xticks(bounds.index)
        axis.set_xlabel("k, layers skipped in roll-outs")
        axis.set_ylabel("sampling speed-up, x")
    legend(figure)
    return figure


@styled
def time_split(sources: Sources, tables: Tables) -> Figure:
    """Draw the time of each phase of a run against the number of layers skipped."""
    figure, cells = cell_panels(trained_runs(sources), 2.5, 2.0, sharey="row")
    for axis, rows in cells:
        if rows.empty:
            mark_missing(axis)
            continue
        means = rows.groupby("num_skipped")[list(PHASES)].mean()
        labels = [f"{k:g}" if k else "0\n(baseline)" for k in means.index]
        bottom = pd.Series(0.0, index=means.index)
        for color, (column, name) in zip(PHASE_COLORS, PHASES.items(), strict=True):
            axis.bar(labels, means[column], bottom=bottom, color=color, label=name, width=0.6)
            bottom += means[column]
        axis.set_xlabel("k, layers skipped in roll-outs")
        axis.set_ylabel("seconds per run")
        axis.grid(axis="x", visible=False)
    legend(figure)
    return figure
