"""The figures, from tables to files. One style, colours that colour-blind readers can tell apart."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nested_reft.mitigation import MITIGATIONS

# Okabe and Ito's palette; a mitigation has the same colour and marker in every figure, and a new one the next.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442"]
COLORS = dict(zip(MITIGATIONS, PALETTE, strict=False))
MARKERS = dict(zip(MITIGATIONS, "os^DvPX", strict=False))
PHASE_COLORS = ["#0072B2", "#CC79A7", "#E69F00", "#999999"]
BASELINE = "#444444"
TITLES = {"accuracy": "Accuracy", "token_speed_tok_s": "Token speed", "train_runtime_s": "Run time"}
UNITS = {"accuracy": "share correct", "token_speed_tok_s": "tokens/s", "train_runtime_s": "s"}
OFF_POLICY = {
    "sampling/kl": "KL(mu || pi), nats per token",
    "sampling/acceptance_rate": "Acceptance rate, 1 - TV",
    "sampling/ess": "Effective sample size",
}

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
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out now: once for both files
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"))
    plt.close(figure)


def percent(value: float, _: Any = None) -> str:
    """Return a share as a label."""
    return f"{100 * value:g}%"


def panels(frame: pd.DataFrame, width: float, height: float, **shared: Any) -> tuple[Figure, list[tuple[Any, Any]]]:
    """Return a figure with a row per model and a column per dataset, and (axis, rows of the cell) for each panel."""
    models, datasets = list(frame["model"].unique()), list(frame["dataset"].unique())
    size = (max(4.2, 0.9 + width * len(datasets)), 0.8 + height * len(models))
    figure, axes = plt.subplots(
        len(models), len(datasets), figsize=size, squeeze=False, layout="constrained", **shared
    )
    cells = []
    for row, model in zip(axes, models, strict=True):
        for axis, dataset in zip(row, datasets, strict=True):
            axis.set_title(f"{model}, {dataset}")
            cells.append((axis, frame[(frame["model"] == model) & (frame["dataset"] == dataset)]))
    return figure, cells


def legend(figure: Figure) -> None:
    """Put one legend below all panels, each entry once."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries}
    if not entries:  # every panel is missing
        return
    # in inches: what a label of 8 points and its handle take
    wanted = sum(0.07 * len(label) + 0.6 for label in entries)
    rows = math.ceil(wanted / figure.get_figwidth())
    columns = math.ceil(len(entries) / rows)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def missing(axis: Any) -> None:
    """Say in a panel that there is nothing to draw."""
    behind = {"facecolor": "white", "edgecolor": "none"}  # what a panel without data still shows, such as bounds
    axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=BASELINE, bbox=behind)


def errors(rows: pd.DataFrame, center: str, low: str, high: str) -> list[pd.Series]:
    """Return how far an interval reaches below and above its center; nothing where there is no interval."""
    return [(rows[center] - rows[low]).fillna(0).clip(lower=0), (rows[high] - rows[center]).fillna(0).clip(lower=0)]


def dataset_figure(deltas: pd.DataFrame) -> Figure:
    """Draw Figures 1-3 of the paper: metrics against the skip ratio, a column per model.

    The bar of an instance is the interval of its delta to the baseline: one that does not reach the
    dashed line differs from it, before any correction for how many are compared.

    Args:
        deltas: those of one dataset, a row per instance and metric.
    """
    models = list(deltas["model"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(UNITS),
            len(models),
            figsize=(0.9 + 3.0 * len(models), 1.9 * len(UNITS) + 0.5),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for column, model in enumerate(models):
            for axis, (metric, unit) in zip(axes[:, column], UNITS.items(), strict=True):
                rows = deltas[(deltas["model"] == model) & (deltas["metric"] == metric)]
                if column == 0:
                    axis.set_ylabel(f"{TITLES[metric]} [{unit}]")
                ratios = sorted(rows["skip_ratio"].unique())
                axis.set_xticks(ratios)
                axis.xaxis.set_major_formatter(percent)
                step = min([b - a for a, b in pairwise(ratios)], default=0.05)
                axis.set_xlim(ratios[0] - step / 2, ratios[-1] + step / 2)
                if rows["instance"].isna().all():
                    missing(axis)
                    continue
                axis.axhline(rows["baseline"].mean(), color=BASELINE, linestyle="--", linewidth=1, label="baseline")
                for index, (mitigation, of_mitigation) in enumerate(rows.groupby("mitigation", sort=False)):
                    axis.errorbar(
                        of_mitigation["skip_ratio"] + 0.07 * step * (index - 1),  # so that bars do not hide each other
                        of_mitigation["instance"],
                        yerr=errors(of_mitigation, "absolute_delta", "ci_low", "ci_high"),
                        color=COLORS[mitigation],
                        marker=MARKERS[mitigation],
                        markersize=4,
                        linewidth=1.2,
                        elinewidth=0.7,
                        capsize=2,
                        label=mitigation,
                    )
            absent = deltas[(deltas["model"] == model) & (deltas["metric"] == "accuracy") & deltas["instance"].isna()]
            names = [f"{percent(ratio)} {name}" for ratio, name in absent[["skip_ratio", "mitigation"]].values]
            note = f"\nmissing: {', '.join(names)}" if 0 < len(names) < 4 else ""
            axes[0, column].set_title(f"{model}, {deltas['dataset'].iloc[0]}{note}")
            axes[-1, column].set_xlabel("skip ratio (share of layers skipped in roll-outs)")
        legend(figure)
    return figure


def frontier(deltas: pd.DataFrame) -> Figure:
    """Draw accuracy against token speed, both as deltas to the baseline, and who is not beaten in both.

    Args:
        deltas: a row per instance and metric.
    """
    keys = ["model", "dataset", "skip_ratio", "mitigation"]
    speed = deltas[deltas["metric"] == "token_speed_tok_s"][
        [*keys, "relative_delta", "relative_ci_low", "relative_ci_high"]
    ]
    both = deltas[deltas["metric"] == "accuracy"].merge(speed, on=keys, suffixes=("", "_of_speed"))
    ratios = sorted(both["skip_ratio"].unique())
    sizes = {ratio: 3.0 + 1.5 * index for index, ratio in enumerate(ratios)}
    with plt.rc_context(STYLE):
        figure, cells = panels(both, 2.5, 2.3)
        for axis, rows in cells:
            if rows["absolute_delta"].isna().all():
                missing(axis)
                continue
            axis.axhline(0, color=BASELINE, linewidth=0.6)
            axis.axvline(0, color=BASELINE, linewidth=0.6)
            axis.plot(0, 0, color=BASELINE, marker="*", markersize=8, linestyle="", label="baseline")
            for (mitigation, skip_ratio), of_mitigation in rows.groupby(["mitigation", "skip_ratio"], sort=False):
                axis.errorbar(
                    of_mitigation["relative_delta_of_speed"],
                    of_mitigation["absolute_delta"],
                    xerr=errors(
                        of_mitigation,
                        "relative_delta_of_speed",
                        "relative_ci_low_of_speed",
                        "relative_ci_high_of_speed",
                    ),
                    yerr=errors(of_mitigation, "absolute_delta", "ci_low", "ci_high"),
                    color=COLORS[mitigation],
                    marker=MARKERS[mitigation],
                    markersize=sizes[skip_ratio],
                    linestyle="",
                    elinewidth=0.5,
                    label=mitigation if skip_ratio == ratios[-1] else None,
                )
            points = [
                (0.0, 0.0),
                *rows[["relative_delta_of_speed", "absolute_delta"]].dropna().itertuples(index=False),
            ]
            best = sorted(p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points))
            axis.step(
                *zip(*best, strict=True), where="pre", color=BASELINE, linestyle=":", linewidth=1, label="frontier"
            )
            for ratio, size in sizes.items():
                axis.plot([], [], color="#bbbbbb", marker="o", linestyle="", markersize=size, label=percent(ratio))
            axis.xaxis.set_major_formatter(percent)
            axis.set_xlabel("token speed, change")
            axis.set_ylabel("accuracy, delta")
        legend(figure)
    return figure


def heat_map(deltas: pd.DataFrame) -> Figure:
    """Draw the accuracy delta of the whole grid: a row per (model, dataset), a column per instance.

    Args:
        deltas: those of the accuracy, a row per instance.
    """
    wide = deltas.pivot(index=["model", "dataset"], columns=["skip_ratio", "mitigation"], values="absolute_delta")
    resolved = deltas.assign(resolved=deltas["verdict"] == "resolved").pivot(
        index=["model", "dataset"], columns=["skip_ratio", "mitigation"], values="resolved"
    )
    order = list(deltas[["model", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
    columns = list(deltas[["skip_ratio", "mitigation"]].drop_duplicates().itertuples(index=False, name=None))
    values = 100 * wide.reindex(index=order, columns=columns).to_numpy(float)
    stands_out = resolved.reindex(index=order, columns=columns).to_numpy()
    limit = max(1.0, float(np.nanmax(np.abs(values)))) if not np.isnan(values).all() else 1.0
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (2.4 + 0.55 * len(columns), max(2.8, 1.7 + 0.38 * len(order)))
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        axis.set_facecolor("#dddddd")
        image = axis.imshow(np.ma.masked_invalid(values), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            text = "missing" if np.isnan(value) else f"{value:+.1f}{'*' if stands_out[row, column] else ''}"
            color = "white" if abs(value) > 0.7 * limit else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)
        axis.set_xticks(range(len(columns)), [f"{percent(x)} {name}" for x, name in columns], rotation=45, ha="right")
        axis.set_yticks(range(len(order)), [f"{model}, {dataset}" for model, dataset in order])
        axis.set_xlabel("skip ratio and mitigation")
        figure.colorbar(image, ax=axis, label="accuracy delta, points")
    return figure


def speed_up(efficiency: pd.DataFrame) -> Figure:
    """Draw how much faster sampling is than the baseline's, against what skipping k of N layers can give at most.

    Args:
        efficiency: a row per instance.
    """
    with plt.rc_context(STYLE):
        figure, cells = panels(efficiency, 2.5, 2.1, sharey=True)
        for axis, rows in cells:
            bounds = rows.groupby("num_skipped")[["bound", "bound_with_lm_head"]].first()
            bounds.loc[0] = 1.0
            bounds = bounds.sort_index()
            axis.plot(bounds.index, bounds["bound"], color=BASELINE, linewidth=1, label="N / (N - k)")
            axis.plot(
                bounds.index,
                bounds["bound_with_lm_head"],
                color=BASELINE,
                linewidth=1,
                linestyle="--",
                label="with output projection",
            )
            for index, (mitigation, of_mitigation) in enumerate(rows.groupby("mitigation", sort=False)):
                axis.errorbar(
                    of_mitigation["num_skipped"] + 0.1 * (index - 1),
                    of_mitigation["sampling_speed_up"],
                    yerr=errors(of_mitigation, "sampling_speed_up", "speed_up_ci_low", "speed_up_ci_high"),
                    color=COLORS[mitigation],
                    marker=MARKERS[mitigation],
                    markersize=4,
                    linestyle="",
                    elinewidth=0.7,
                    capsize=2,
                    label=mitigation,
                )
            if rows["sampling_speed_up"].isna().all():
                missing(axis)
            axis.set_xticks(bounds.index)
            axis.set_xlabel("k, layers skipped in roll-outs")
            axis.set_ylabel("sampling speed-up, x")
        legend(figure)
    return figure


def time_split(rows: pd.DataFrame, phases: Mapping[str, str]) -> Figure:
    """Draw where the time of a run goes, against the number of layers skipped.

    Args:
        rows: runs with one column of seconds per phase.
        phases: column -> name in the legend, from the bottom of the stack to its top.
    """
    with plt.rc_context(STYLE):
        figure, cells = panels(rows, 2.5, 2.0, sharey="row")
        for axis, of_cell in cells:
            if of_cell.empty:
                missing(axis)
                continue
            means = of_cell.groupby("num_skipped")[list(phases)].mean()
            labels = [f"{k:g}" if k else "0\n(baseline)" for k in means.index]
            bottom = pd.Series(0.0, index=means.index)
            for color, (column, name) in zip(PHASE_COLORS, phases.items(), strict=True):
                axis.bar(labels, means[column], bottom=bottom, color=color, label=name, width=0.6)
                bottom += means[column]
            axis.set_xlabel("k, layers skipped in roll-outs")
            axis.set_ylabel("seconds per run")
            axis.grid(axis="x", visible=False)
        legend(figure)
    return figure


def off_policy(steps: pd.DataFrame) -> Figure:
    """Draw how far the roll-outs are from the policy that is trained: means over the steps, against the skip ratio.

    Args:
        steps: a row per run and step, with `sampling/kl`, `sampling/acceptance_rate` and `sampling/ess`.
    """
    cells = list(steps.groupby(["model", "dataset"], sort=False))
    keys = ["skip_ratio", "mitigation", "seed"]
    with plt.rc_context(STYLE):
        size = (7.4, 0.7 + 1.9 * len(cells))
        figure, axes = plt.subplots(
            len(cells), len(OFF_POLICY), figsize=size, squeeze=False, sharex=True, layout="constrained"
        )
        for row, ((model, dataset), of_cell) in zip(axes, cells, strict=True):
            for axis, (name, title) in zip(row, OFF_POLICY.items(), strict=True):
                means = of_cell.groupby(keys)[name].mean().reset_index()
                baseline = means.loc[means["skip_ratio"] == 0, name].mean()
                axis.plot(0, baseline, color=BASELINE, marker="*", markersize=8, linestyle="", label="baseline")
                for mitigation in steps.loc[steps["skip_ratio"] > 0, "mitigation"].unique():
                    of_mitigation = means[(means["skip_ratio"] > 0) & (means["mitigation"] == mitigation)]
                    over_seeds = of_mitigation.groupby("skip_ratio")[name].agg(["mean", "min", "max"])
                    style = {"color": COLORS[mitigation], "linewidth": 1.2}
                    axis.fill_between(over_seeds.index, over_seeds["min"], over_seeds["max"], alpha=0.15, **style)
                    axis.plot(
                        over_seeds.index,
                        over_seeds["mean"],
                        marker=MARKERS[mitigation],
                        markersize=4,
                        label=mitigation,
                        **style,
                    )
                axis.set_title(title)
                axis.set_xticks(sorted(means["skip_ratio"].unique()))
                axis.xaxis.set_major_formatter(percent)
            row[0].set_ylabel(f"{model},\n{dataset}")
        for axis in axes[-1]:
            axis.set_xlabel("skip ratio")
        legend(figure)
    return figure


def reward_curves(steps: pd.DataFrame) -> Figure:
    """Draw the mean reward of the sampled completions over training, a panel per skip ratio.

    Thin: each step; thick: running mean; both are means over seeds, and the band is from the lowest to
    the highest running mean of a seed.

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
                    by_seed = of_cell[chosen].pivot(index="step", columns="seed", values="reward")
                    if by_seed.empty:
                        axis.text(0.02, 0.02, f"{label}: missing", transform=axis.transAxes, fontsize=6, color=color)
                        continue
                    smooth = by_seed.rolling(max(1, len(by_seed) // 8), min_periods=1, center=True).mean()
                    axis.fill_between(
                        smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, linewidth=0
                    )
                    axis.plot(by_seed.index, by_seed.mean(axis=1), color=color, alpha=0.2, linewidth=0.7)
                    axis.plot(smooth.index, smooth.mean(axis=1), color=color, linewidth=1.4, label=label)
                axis.set_title(f"{model}, {dataset}\n{percent(ratio)} skipped")
            row[0].set_ylabel("reward (share correct)")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        legend(figure)
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
