"""The figure of the command `diagnose`."""

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures.common import legend, panels, percent, styled
from nested_reft.report.style import BASELINE, PALETTE

# How the layers of a set are chosen, its `choice`: at random, or those with the lowest KL alone.
UNIFORM, LOWEST = "uniform", "lowest"


@styled
def diagnosis(by_ratio: pd.DataFrame, by_layer: pd.DataFrame, by_set: pd.DataFrame) -> Figure:
    """Draw how far nested roll-outs are from the full model: by skip ratio, by layer and by set of layers.

    Args:
        by_ratio: a row per skip ratio, with the metrics over all draws of layers.
        by_layer: columns layer and kl, a row per layer that may be skipped.
        by_set: a row per set of skipped layers, with its `choice`, its metrics and `sum_of_layers`, the sum of the KL
            of its layers alone.
    """
    figure, axes = panels(2, 3, 4.6)
    kl, reward, overlap = axes[0]
    grid = axes[1, 0].get_gridspec()
    for axis in axes[1, :2]:
        axis.remove()
    layers, sums = figure.add_subplot(grid[1, :2]), axes[1, 2]
    ratios = by_ratio["skip_ratio"]
    uniform, lowest = (by_set[by_set["choice"] == choice] for choice in (UNIFORM, LOWEST))
    set_label, lowest_label = "a random set of layers", "the layers with the lowest KL alone"
    for axis, name, title in (
        (kl, "exact_kl", "KL(μ ‖ π), nats per token"),
        (reward, "reward", "share of right answers"),
    ):
        axis.plot(ratios, by_ratio[name], color=BASELINE, linewidth=1.2, label="mean of the random sets")
        axis.scatter(uniform["skip_ratio"], uniform[name], color=BASELINE, s=12, alpha=0.6, label=set_label)
        axis.scatter(lowest["skip_ratio"], lowest[name], color=PALETTE[1], marker="D", s=28, label=lowest_label)
        axis.set_title(title)
    for name, label, color, marker, line in (
        ("overlap", "overlap of μ and π", PALETTE[2], "o", "-"),
        ("overlap_p5", "5th percentile of the overlap over tokens", PALETTE[2], "v", ":"),
        ("ess", "effective sample size", PALETTE[3], "s", "-"),
    ):
        values = by_ratio[name]
        overlap.plot(
            ratios, values, color=color, marker=marker, markersize=4, linewidth=1.2, linestyle=line, label=label
        )
    overlap.set_title("agreement of μ and π (1: equal)")
    overlap.set_ylim(0, 1.05)
    for axis in (kl, reward, overlap):
        axis.set_xlabel("skip ratio")
        axis.set_xticks(ratios, [percent(ratio) for ratio in ratios])
    layers.bar(by_layer["layer"], by_layer["kl"], color=PALETTE[0], width=0.7)
    layers.set_title("KL(μ ‖ π) with this layer alone skipped, nats per token")
    layers.set_xlabel("layer (0 is the first)")
    layers.grid(axis="x", visible=False)
    skipping = uniform[uniform["num_skipped"] > 0]
    sums.scatter(skipping["sum_of_layers"], skipping["exact_kl"], color=BASELINE, s=12, alpha=0.6)
    sums.scatter(lowest["sum_of_layers"], lowest["exact_kl"], color=PALETTE[1], marker="D", s=28)
    sums.axline(
        (0, 0), slope=1, color=BASELINE, linewidth=0.8, linestyle="--", label="the set is the sum of its layers"
    )
    sums.set_title("KL(μ ‖ π) of a set, nats per token")
    sums.set_xlabel("sum of the KL of its layers alone")
    legend(figure)
    return figure
