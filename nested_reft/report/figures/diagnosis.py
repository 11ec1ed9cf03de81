"""The figure of the command `diagnose`."""

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import legend, panels, percent, styled
from nested_reft.report.style import BASELINE, PALETTE


@styled
def diagnosis(by_ratio: pd.DataFrame, by_layer: pd.DataFrame) -> Figure:
    """Draw how far nested roll-outs are from the full model: by skip ratio, with the spread of draws, and by layer.

    Args:
        by_ratio: a row per skip ratio, with the lowest and the highest `kl` and `reward` of a draw of layers.
        by_layer: columns layer and kl, a row per layer that may be skipped.
    """
    figure, axes = panels(2, 3, 4.6)
    kl, reward, overlap = axes[0]
    grid = axes[1, 0].get_gridspec()
    for axis in axes[1]:
        axis.remove()
    layers = figure.add_subplot(grid[1, :])
    ratios = by_ratio["skip_ratio"]
    for axis, name, title in ((kl, "kl", "KL(μ ‖ π), nats per token"), (reward, "reward", "share of right answers")):
        low, high = by_ratio[f"{name}_lowest"].clip(lower=0), by_ratio[f"{name}_highest"].clip(lower=0)
        label = "lowest to highest draw of layers"
        axis.fill_between(ratios, low, high, color=BASELINE, alpha=0.15, linewidth=0, label=label)
        mean = by_ratio[name].clip(lower=0)
        axis.plot(ratios, mean, color=BASELINE, marker="o", markersize=4, linewidth=1.2, label="all draws")
        axis.set_title(title)
    for name, label, color, marker in (
        ("acceptance_rate", "acceptance rate", PALETTE[2], "o"),
        ("ess", "effective sample size", PALETTE[3], "s"),
    ):
        overlap.plot(ratios, by_ratio[name], color=color, marker=marker, markersize=4, linewidth=1.2, label=label)
    overlap.set_title("agreement of μ and π (1: equal)")
    overlap.set_ylim(0, 1.05)
    for axis in (kl, reward, overlap):
        axis.set_xlabel("skip ratio")
        axis.set_xticks(ratios, [percent(ratio) for ratio in ratios])
    layers.bar(by_layer["layer"], by_layer["kl"], color=PALETTE[0], width=0.7)
    layers.set_title("KL(μ ‖ π) with this layer alone skipped, nats per token")
    layers.set_xlabel("layer (0 is the first)")
    layers.grid(axis="x", visible=False)
    legend(figure)
    return figure
