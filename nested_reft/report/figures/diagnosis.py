"""The figure of the command `diagnose`."""

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import panels, styled
from nested_reft.report.style import BASELINE


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
