"""What people see of the measurements of speed: tables in a terminal, and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from nested_reft.report.figures import BASELINE, PALETTE, STYLE


def with_interval(estimate: Mapping[str, float]) -> str:
    """Return a median and its interval as text."""
    return f"{estimate['median']:.3f} [{estimate['ci_low']:.3f}, {estimate['ci_high']:.3f}]"


def milliseconds(quartiles: Mapping[str, float]) -> str:
    """Return a median and the quartiles around it as text."""
    low, middle, high = (1e3 * quartiles[name] for name in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def compared(summary: Mapping[str, Any]) -> str:
    """Return a comparison as a table: the baseline first."""
    return markdown(
        [
            {
                "variant": name,
                "ms, median (quartiles)": milliseconds(quartiles),
                f"times as fast as {summary['baseline']}": with_interval(summary["speed_up"][name])
                if name in summary["speed_up"]
                else "1",
            }
            for name, quartiles in summary["quartiles"].items()
        ]
    )


def rollout_table(results: Mapping[str, Any]) -> str:
    """Return what `bench rollout` measured."""
    tokens = {name: row["median"] for name, row in results["generate"]["tokens_per_second"].items()}
    parts = [
        compared(results["generate"]),
        "Tokens a second: " + ", ".join(f"{name} {speed:,.0f}" for name, speed in tokens.items()),
        f"Layers skipped, of {results['skip']['num_layers']}; each roll-out another mask:",
        markdown(
            [
                {
                    "k": row["num_skipped"],
                    "roll-out, x": with_interval(row["rollout_speed_up"]),
                    "decode step, x": with_interval(row["decode_speed_up"]),
                    "N / (N - k)": f"{row['bound']:.3f}",
                    "share of that gain": with_interval(row["share_of_bound"]),
                    "with output projection": f"{row['bound_with_lm_head']:.3f}",
                    "share of that gain ": with_interval(row["share_of_bound_with_lm_head"]),
                }
                for row in results["skip"]["rows"]
            ]
        ),
        f"A new mask for each roll-out against a fixed one, k = {results['mask']['num_skipped']}:",
        compared(results["mask"]),
    ]
    if results["renewal"]:
        parts += ["A bfloat16 copy of the weights:", compared(results["renewal"])]
    if results["bandwidth"]:
        shares = [f"k = {row['num_skipped']}: {row['share_reached']:.2f}" for row in results["bandwidth"]["rows"]]
        speed = results["bandwidth"]["copy_bytes_per_second"] / 1e9
        parts.append(
            f"Share of the memory bandwidth ({speed:,.0f} GB/s) that a decode step reaches: {', '.join(shares)}"
        )
    memory = results["generate"]["peak_memory"]
    peaks = ", ".join(f"{name} {gib:.2f} GiB" for name, gib in memory["gib"].items())
    return "\n\n".join([*parts, f"Peak memory of {memory['of']}: {peaks}"])


def train_table(results: Mapping[str, Any]) -> str:
    """Return what `bench train` measured."""
    phases = [
        {"variant": name} | {phase: milliseconds(quartiles) for phase, quartiles in of_variant.items()}
        for name, of_variant in results["phases"].items()
    ]
    skip = [
        {
            "sampler": row["sampler"],
            "k": row["num_skipped"],
            "share of the ideal saving": with_interval(row["efficiency"]),
        }
        for row in results["skip"]
    ]
    parts = [compared(results["steps"]), "Where the ms go:", markdown(phases).replace(" nan ", "     ")]
    parts += ["What of skipping k layers reaches a whole step:", markdown(skip)]
    if results["peak_memory_gib"]:
        peaks = ", ".join(f"{name}: {gib:.2f} GiB" for name, gib in results["peak_memory_gib"].items())
        parts.append(f"Peak memory, each in a process of its own: {peaks}")
    return "\n\n".join(parts)


def eval_table(results: Mapping[str, Any]) -> str:
    """Return what `bench eval` measured."""
    speeds = {name: row["median"] for name, row in results["problems_per_second"].items()}
    told = "Problems a second: " + ", ".join(f"{name} {speed:,.1f}" for name, speed in speeds.items())
    return f"{compared(results['evaluation'])}\n\n{told}"


def bars(estimates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return how far intervals reach below and above their medians."""
    return [
        [estimate["median"] - estimate["ci_low"] for estimate in estimates],
        [estimate["ci_high"] - estimate["median"] for estimate in estimates],
    ]


def speed_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the engine against `generate`, and what skipped layers gain against their bounds: a row per measurement.

    Args:
        results: of `bench rollout`.
    """
    with plt.rc_context(STYLE):
        size = (6.0, 0.4 + 2.2 * len(results))
        figure, axes = plt.subplots(len(results), 2, figsize=size, squeeze=False, layout="constrained")
        for (against, skip), result in zip(axes, results, strict=True):
            settings = result["settings"]
            title = f"{settings['model']}\n{settings['prompts']} x {settings['generations']}"
            if result.get("device") == "cpu":
                title += f", {result['threads']} thread" + ("s" if result["threads"] > 1 else "")
            against.set_title(title)
            speed_ups = result["generate"]["speed_up"]
            against.bar(
                list(speed_ups),
                [row["median"] for row in speed_ups.values()],
                yerr=bars(list(speed_ups.values())),
                color=PALETTE[: len(speed_ups)],
                width=0.5,
                capsize=2,
            )
            against.set_xlim(-0.75, len(speed_ups) - 0.25)
            against.axhline(1, color=BASELINE, linewidth=1, linestyle="--")
            against.set_ylabel("speed against generate, x")
            against.grid(axis="x", visible=False)
            rows = result["skip"]["rows"]
            counts = [row["num_skipped"] for row in rows]
            for bound, label, style in (
                ("bound", "N / (N - k)", "-"),
                ("bound_with_lm_head", "with output projection", "--"),
            ):
                values = [1.0, *(row[bound] for row in rows)]
                skip.plot([0, *counts], values, style, color=BASELINE, linewidth=1, label=label)
            for shift, (name, label) in zip(
                (-0.05, 0.05), (("rollout_speed_up", "roll-out"), ("decode_speed_up", "decode step")), strict=True
            ):
                skip.errorbar(
                    [count + shift for count in counts],
                    [row[name]["median"] for row in rows],
                    yerr=bars([row[name] for row in rows]),
                    color=PALETTE[0 if name == "rollout_speed_up" else 1],
                    marker="o",
                    markersize=4,
                    linestyle="",
                    capsize=2,
                    label=label,
                )
            skip.set_xticks([0, *counts])
            skip.set_xlabel("k, layers skipped")
            skip.set_ylabel("speed against k = 0, x")
        axes[0, 1].legend()
    return figure
