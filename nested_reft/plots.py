"""The figures, from tables to files. One style, colours that colour-blind readers can tell apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

# Okabe and Ito's palette; a mitigation has the same colour and marker in every figure.
COLORS = {"base": "#0072B2", "practical": "#D55E00", "retrace": "#009E73", "is": "#CC79A7", "truncated": "#56B4E9"}
MARKERS = {"base": "o", "practical": "s", "retrace": "^", "is": "D", "truncated": "v"}
PHASE_COLORS = ["#0072B2", "#CC79A7", "#E69F00", "#999999"]
BASELINE = "#444444"
TITLES = {"accuracy": "Accuracy", "token_speed_tok_s": "Token speed", "train_runtime_s": "Run time"}

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "nested-reft",  # the same figure is the same file
    "svg.fonttype": "none",
    "figure.dpi": 150,
}


def save(figure: Figure, path: Path) -> None:
    """Write the figure as SVG and PNG."""
    with plt.rc_context(STYLE):  # some of it is read when a figure is written
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"))
    plt.close(figure)


def dataset_figure(rows: pd.DataFrame, metrics: Mapping[str, str]) -> Figure:
    """Draw Figures 1-3 of the paper: metrics against the skip ratio, a column per model.

    Args:
        rows: the runs on one dataset, with `accuracy_half`, half the width of the interval.
        metrics: column -> unit, one row of panels each.
    """
    models = list(rows["model"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(metrics),
            len(models),
            figsize=(0.6 + 3.4 * len(models), 1.9 * len(metrics) + 0.5),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for column, model in enumerate(models):
            of_model = rows[rows["model"] == model]
            baseline = of_model[of_model["skip_ratio"] == 0]
            for axis, (metric, unit) in zip(axes[:, column], metrics.items(), strict=True):
                axis.axhline(baseline[metric].mean(), color=BASELINE, linestyle="--", linewidth=1, label="baseline")
                instances = of_model[of_model["skip_ratio"] > 0]
                for index, (mitigation, of_mitigation) in enumerate(instances.groupby("mitigation", sort=False)):
                    means = of_mitigation.groupby("skip_ratio")[[metric, "accuracy_half"]].mean()
                    shift = 0.0012 * (index - 1)  # beside each other, so that intervals do not hide each other
                    axis.errorbar(
                        means.index + shift,
                        means[metric],
                        yerr=means["accuracy_half"] if metric == "accuracy" else None,
                        color=COLORS[mitigation],
                        marker=MARKERS[mitigation],
                        markersize=4,
                        linewidth=1.2,
                        elinewidth=0.7,
                        capsize=2,
                        label=mitigation,
                    )
                axis.set_xticks(sorted(instances["skip_ratio"].unique()))
                axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
                if column == 0:
                    axis.set_ylabel(f"{TITLES[metric]} [{unit}]")
            axes[0, column].set_title(f"{model}, {rows['dataset'].iloc[0]}")
            axes[-1, column].set_xlabel("skip ratio (share of layers skipped in roll-outs)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def time_split(rows: pd.DataFrame, phases: Mapping[str, str]) -> Figure:
    """Draw where the time of a run goes, against the number of layers skipped.

    Args:
        rows: runs with one column of seconds per phase.
        phases: column -> name in the legend, from the bottom of the stack to its top.
    """
    cells = list(rows.groupby(["model", "dataset"], sort=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(cells), figsize=(1.4 + 3.4 * len(cells), 2.8), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, ((model, dataset), of_cell) in zip(axes[0], cells, strict=True):
            means = of_cell.groupby("num_skipped")[list(phases)].mean()
            labels = [str(k) if k else "0\n(baseline)" for k in means.index]
            bottom = pd.Series(0.0, index=means.index)
            for color, (column, name) in zip(PHASE_COLORS, phases.items(), strict=True):
                axis.bar(labels, means[column], bottom=bottom, color=color, label=name, width=0.6)
                bottom += means[column]
            axis.set_title(f"{model}, {dataset}")
            axis.set_xlabel("layers skipped in roll-outs (mean over mitigations)")
            axis.grid(axis="x", visible=False)
        axes[0, 0].set_ylabel("seconds per run")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def reward_curves(steps: pd.DataFrame) -> Figure:
    """Draw the mean reward of the sampled completions over training, a panel per skip ratio.

    Args:
        steps: columns model, dataset, skip_ratio, mitigation, seed, step and reward.
    """
    cells = list(steps.groupby(["model", "dataset"], sort=False))
    ratios = sorted(ratio for ratio in steps["skip_ratio"].unique() if ratio > 0)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(cells),
            len(ratios),
            figsize=(0.6 + 2.4 * len(ratios), 2.1 * len(cells) + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for row, ((model, dataset), of_cell) in zip(axes, cells, strict=True):
            for axis, ratio in zip(row, ratios, strict=True):
                for chosen, label, color in (
                    ((of_cell["skip_ratio"] == 0), "baseline", BASELINE),
                    *(
                        ((of_cell["skip_ratio"] == ratio) & (of_cell["mitigation"] == name), name, COLORS[name])
                        for name in steps.loc[steps["skip_ratio"] > 0, "mitigation"].unique()
                    ),
                ):
                    curve = of_cell[chosen].groupby("step")["reward"].mean()
                    window = max(1, len(curve) // 8)
                    smooth = curve.rolling(window, min_periods=1, center=True).mean()
                    axis.plot(curve.index, curve, color=color, alpha=0.2, linewidth=0.7)
                    axis.plot(smooth.index, smooth, color=color, linewidth=1.4, label=label)
                axis.set_title(f"{model}, {dataset}, {100 * ratio:g}% skipped")
            row[0].set_ylabel("reward (share correct)")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def diagnosis(by_ratio: pd.DataFrame, by_layer: pd.DataFrame) -> Figure:
    """Draw how far nested roll-outs are from the whole model: by skip ratio, with the spread of masks, and by layer.

    Args:
        by_ratio: a row per skip ratio, with the lowest and the highest mask of `kl` and `reward`.
        by_layer: columns layer and kl, a row per layer that may be skipped.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.4), width_ratios=[1, 1, 1, 2], layout="constrained")
        positions = 100 * by_ratio["skip_ratio"]
        for axis, name, title in (
            (axes[0], "kl", "KL(mu || pi), nats per token"),
            (axes[1], "reward", "Share correct"),
        ):
            low, high = by_ratio[f"{name}_lowest_mask"], by_ratio[f"{name}_highest_mask"]
            axis.fill_between(positions, low, high, color=BASELINE, alpha=0.15, linewidth=0, label="masks")
            axis.plot(positions, by_ratio[name], color=BASELINE, marker="o", markersize=4, linewidth=1.2, label="mean")
            axis.set_title(title)
            axis.legend()
        for name, color in (("acceptance_rate", "#009E73"), ("ess", "#CC79A7")):
            axes[2].plot(positions, by_ratio[name], color=color, marker="o", markersize=4, linewidth=1.2, label=name)
        axes[2].set_title("Acceptance rate, sample size")
        axes[2].set_ylim(0, 1.05)
        axes[2].legend()
        for axis in axes[:3]:
            axis.set_xlabel("layers skipped, %")
        axes[3].bar(by_layer["layer"], by_layer["kl"], color="#0072B2", width=0.7)
        axes[3].set_title("KL(mu || pi) with one layer skipped")
        axes[3].set_xlabel("layer")
        axes[3].grid(axis="x", visible=False)
    return figure
