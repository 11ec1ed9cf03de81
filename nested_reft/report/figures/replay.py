"""The figure of the command `replay`."""

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nested_reft.report.figures.common import COLORS, LINES, legend, name_axes, panels, styled

WEIGHTS = "sampling/importance_sampling_ratio"
PANELS = {
    f"{WEIGHTS}/ess": "ESS of the token weights\n(share of the tokens)",
    f"{WEIGHTS}/mean": "mean token weight",
    "clip_ratio/region_mean": "clipped by the loss\n(share of the tokens)",
}


@styled
def replay(rows: pd.DataFrame) -> Figure:
    """Draw what each mitigation makes of the same completions, over the optimizer steps.

    Args:
        rows: a row per mitigation and step, with the metrics of the step.
    """
    titles = {name: title for name, title in PANELS.items() if name in rows}  # not every loss clips
    figure, axes = panels(1, len(titles), 2.9)
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        for line, (mitigation, steps) in zip(cycle(LINES), rows.groupby("mitigation", sort=False), strict=False):
            style = {"color": COLORS[str(mitigation)], "linestyle": line, "linewidth": 1.4}
            axis.plot(steps["step"], steps[name], label=mitigation, **style)
        axis.set_title(title)
        if name != f"{WEIGHTS}/mean":
            axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    name_axes(figure, "optimizer step")
    legend(figure)
    return figure
