"""The figure of the command `gradients`."""

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import (
    COLORS,
    FILLS,
    MARKERS,
    errors,
    legend_row,
    panels,
    percent,
    sample,
    styled,
)
from nested_reft.report.style import BASELINE

PANELS = {
    "standard_deviation": "of one batch",
    "standard_deviation_of_second": "of one second of roll-outs and updates",
}


@styled
def gradients(table: pd.DataFrame) -> Figure:
    """Draw the bias of each arm against its standard deviation, of a batch and of the batches of a second.

    Args:
        table: a row per arm; the first is that of the whole model.
    """
    control, arms = table.iloc[0], table.iloc[1:]
    ratios, levels = sorted(arms["skip_ratio"].unique()), [level for level in arms["ratio_level"].unique() if level]
    sizes = {ratio: 4 + 5 * (place + 1) / len(ratios) for place, ratio in enumerate(ratios)}  # points
    figure, axes = panels(1, 2, 4.4, sharex=True)
    handles = [sample("whole model", color=BASELINE, marker="*", markersize=10, linestyle="none")]
    for (mitigation, level), rows in arms.groupby(["mitigation", "ratio_level"], sort=False):
        style = {
            "color": COLORS[str(mitigation)],
            "marker": MARKERS[str(mitigation)],
            "fillstyle": FILLS[levels.index(level) if level else 0],
        }
        handles.append(sample(f"{mitigation}, {level}" if level else str(mitigation), linestyle="none", **style))
        for axis, name in zip(axes[0], PANELS, strict=True):
            axis.plot(rows["bias"], rows[name], color=style["color"], linewidth=0.6, alpha=0.5)
            for ratio, points in rows.groupby("skip_ratio"):
                axis.errorbar(
                    points["bias"],
                    points[name],
                    xerr=errors(points, "bias", "bias_low", "bias_high"),
                    yerr=errors(points, name, f"{name}_low", f"{name}_high"),
                    markersize=sizes[ratio],
                    linestyle="none",
                    elinewidth=0.5,
                    ecolor=(style["color"], 0.4),
                    **style,
                )
    for axis, (name, title) in zip(axes[0], PANELS.items(), strict=True):
        axis.plot(control["bias"], control[name], color=BASELINE, marker="*", markersize=10, linestyle="none")
        axis.axhline(control[name], color=BASELINE, linewidth=0.8, linestyle="--")
        axis.set_yscale("log")
        # Intervals of arms that are hardly known would hide the others.
        widest = 1.3 * max(table["bias"].max(), 0.1)
        axis.set_xlim(-0.03 * widest, widest)
        axis.set_ylim(table[name].min() / 1.5, table[name].max() * 1.5)
        axis.set_title(f"standard deviation {title}")
        axis.set_xlabel("bias")
    axes[0, 0].set_ylabel("relative to the norm of the on-policy gradient")
    handles += [
        sample(f"x = {percent(ratio)}", color=BASELINE, marker="o", linestyle="none", markersize=sizes[ratio])
        for ratio in ratios
    ]
    legend_row(figure, handles)
    return figure
