"""Tables and a figure of the measurements of speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nested_reft.report.style import BASELINE, BOUND, LM_HEAD_BOUND, PALETTE, SMALL, STYLE, WIDTH, plt


def with_interval(estimate: Mapping[str, float]) -> str:
    """Return a median and its interval as text."""
    return f"{estimate['median']:.3f} [{estimate['ci_low']:.3f}, {estimate['ci_high']:.3f}]"


def milliseconds(quartiles: Mapping[str, float]) -> str:
    """Return a median and the quartiles around it as text."""
    low, middle, high = (1e3 * quartiles[name] for name in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table with aligned columns; a cell that a row lacks is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in table
    ]
    rule = "|" + "|".join(":" + "-" * (width + 1) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def compared(summary: Mapping[str, Any]) -> str:
    """Return a comparison as a table, the baseline first."""
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


def scale_table(results: Mapping[str, Any]) -> str:
    """Return the results of `bench scale` as text: a row per command, and three columns per number of runs."""
    rows: dict[str, dict[str, str]] = {}
    for measured in results["measured"]:
        row = rows.setdefault(measured["command"], {"command": measured["command"]})
        row[f"{measured['runs']:,} runs, s"] = f"{measured['seconds']:.1f}"
        row[f"{measured['runs']:,} runs, CPU s"] = f"{measured['cpu_seconds']:.1f}"
        row[f"{measured['runs']:,} runs, GiB"] = f"{measured['peak_gib']:.2f}"
    return markdown(list(rows.values()))


def rollout_table(results: Mapping[str, Any]) -> str:
    """Return the results of `bench rollout` as text."""
    tokens = {name: row["median"] for name, row in results["generate"]["tokens_per_second"].items()}
    parts = [
        compared(results["generate"]),
        "Tokens a second: " + ", ".join(f"{name} {speed:,.0f}" for name, speed in tokens.items()),
    ]
    if results["skip"]:
        parts += skip_parts(results)
    if results["weight_copy"]:
        parts += ["A bfloat16 copy of the weights:", compared(results["weight_copy"])]
    if over_generate := (results["weight_copy"] or {}).get("copy_over_generate"):
        parts.append(f"The synchronized copy is {with_interval(over_generate)} times as fast as generate.")
    if results.get("products"):  # files of earlier versions have none, and note nothing that was left out
        parts.append("The matrix products of a decode step alone, one after the other:")
        parts.append(
            markdown(
                [
                    {
                        "type": name,
                        "ms": f"{1e3 * products['seconds']:.3g}",
                        "GFLOP/s": f"{products['flops'] / 1e9:,.0f}",
                        "GFLOP/s of square matrices": f"{products['square_flops'] / 1e9:,.0f}",
                    }
                    for name, products in results["products"].items()
                ]
            )
        )
        shares = [f"{name} {share:.2f}" for name, share in results["share_of_products"].items()]
        parts.append(f"Their share of the time of a roll-out: {', '.join(shares)}")
    if results["bandwidth"]:
        shares = [f"k = {row['num_skipped']}: {row['share_reached']:.2f}" for row in results["bandwidth"]["rows"]]
        speed = results["bandwidth"]["copy_bytes_per_second"] / 1e9
        parts.append(
            f"Share of the memory bandwidth ({speed:,.0f} GB/s) that a decode step reaches: {', '.join(shares)}"
        )
    memory = results["generate"]["peak_memory"]
    peaks = ", ".join(f"{name} {gib:.2f} GiB" for name, gib in memory["gib"].items())
    parts.append(f"Peak memory of {memory['of']}: {peaks}")
    return "\n\n".join(
        [*parts, *(f"Not measured: {name}: {why}" for name, why in results.get("left_out", {}).items())]
    )


def skip_parts(results: Mapping[str, Any]) -> list[str]:
    """Return the parts of the results of `bench rollout` that are about skipped layers."""
    return [
        f"Layers skipped, of {results['skip']['num_layers']}; each roll-out skips another set of k layers:",
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
        f"Another skip set in each roll-out against a fixed one, k = {results['new_skip_set']['num_skipped']}:",
        compared(results["new_skip_set"]),
    ]


def train_table(results: Mapping[str, Any]) -> str:
    """Return the results of `bench train` as text."""
    phases = [
        {"variant": name} | {phase: milliseconds(quartiles) for phase, quartiles in by_phase.items()}
        for name, by_phase in results["phases"].items()
    ]
    skip = [
        {
            "sampler": row["sampler"],
            "k": row["num_skipped"],
            "share of the ideal saving": with_interval(row["efficiency"]),
        }
        for row in results["skip"]
    ]
    parts = [compared(results["steps"]), "Milliseconds by phase:", markdown(phases)]
    parts += ["How much of the saving by k skipped layers reaches a whole step:", markdown(skip)]
    if results["peak_memory_gib"]:
        peaks = ", ".join(f"{name}: {gib:.2f} GiB" for name, gib in results["peak_memory_gib"].items())
        parts.append(f"Peak memory, each in a process of its own: {peaks}")
    return "\n\n".join(parts)


def eval_table(results: Mapping[str, Any]) -> str:
    """Return the results of `bench eval` as text."""
    speeds = {name: row["median"] for name, row in results["problems_per_second"].items()}
    rates = "Problems a second: " + ", ".join(f"{name} {speed:,.1f}" for name, speed in speeds.items())
    return f"{compared(results['evaluation'])}\n\n{rates}"


def vllm_table(results: Mapping[str, Any]) -> str:
    """Return the results of `bench vllm` as text."""
    pushes = markdown(
        [
            {
                "roll-out": name,
                "ms of its push, median (quartiles)": milliseconds(results["pushes"][name]),
                "share of the roll-out": with_interval(share),
            }
            for name, share in results["share_of_push"].items()
        ]
    )
    return f"{compared(results['rollouts'])}\n\n{pushes}"


def bars(estimates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return how far the intervals reach below and above their medians."""
    return [
        [estimate["median"] - estimate["ci_low"] for estimate in estimates],
        [estimate["ci_high"] - estimate["median"] for estimate in estimates],
    ]


def setting_title(result: Mapping[str, Any]) -> str:
    """Return the model, the size of the batch and, without a GPU, the threads of a measurement."""
    settings = result["settings"]
    title = f"{settings['model']}\n{settings['prompts']} prompts, {settings['generations']} completions of each"
    if result.get("device") == "cpu":
        title += f"\nCPU, {result['threads']} thread" + ("s" if result["threads"] > 1 else "")
    return title


def draw_token_times(axis: Any, generate: Mapping[str, Any]) -> None:
    """Draw the time per completion token of each sampler, with quartiles, and how many times as fast it is."""
    speeds = generate["tokens_per_second"]
    times = [1e6 / speeds[name]["median"] for name in speeds]
    reach = [
        [time - 1e6 / speeds[name]["upper_quartile"] for name, time in zip(speeds, times, strict=True)],
        [1e6 / speeds[name]["lower_quartile"] - time for name, time in zip(speeds, times, strict=True)],
    ]
    colors = [BASELINE if name == generate["baseline"] else PALETTE[0] for name in speeds]
    axis.barh(list(speeds), times, xerr=reach, color=colors, height=0.5, capsize=3, error_kw={"ecolor": "black"})
    for place, (name, time) in enumerate(zip(speeds, times, strict=True)):
        ratio = generate["speed_up"].get(name)
        label = f"{time:.3g} µs" + (f", {ratio['median']:.2f} times as fast" if ratio else "")
        axis.annotate(label, (0, place + 0.3), xytext=(2, 2), textcoords="offset points", fontsize=SMALL, va="bottom")
    axis.set_ylim(-0.5, len(speeds) - 0.1)
    axis.set_xlabel("time per completion token, µs")
    axis.grid(axis="y", visible=False)


def draw_skipping(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw how many times as fast a roll-out and a decode step are with k layers skipped, and the bounds."""
    counts = [0, *(row["num_skipped"] for row in rows)]
    places = range(len(counts))
    axis.axhline(1, color=BASELINE, linewidth=1)
    axis.plot(places, [1.0, *(row["bound"] for row in rows)], label="bound N / (N - k)", **BOUND)
    lm_head = [1.0, *(row["bound_with_lm_head"] for row in rows)]
    axis.plot(places, lm_head, label="bound with the output projection", **LM_HEAD_BOUND)
    for shift, color, marker, name, label in (
        (-0.07, PALETTE[0], "o", "rollout_speed_up", "roll-out"),
        (0.07, PALETTE[1], "s", "decode_speed_up", "decode step"),
    ):
        axis.errorbar(
            [place + shift for place in places[1:]],
            [row[name]["median"] for row in rows],
            yerr=bars([row[name] for row in rows]),
            color=color,
            marker=marker,
            markersize=4,
            linestyle="",
            capsize=2,
            label=label,
        )
    axis.set_xticks(places, counts)
    axis.set_xlabel("k, layers skipped")
    axis.set_ylabel("times as fast as with k = 0")


def speed_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the time per token of each sampler, and the gain by skipped layers against its bounds.

    Args:
        results: one or more results of `bench rollout`, each of which becomes a row of the figure.
    """
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.6 + 2.5 * len(results))
        figure, axes = plt.subplots(len(results), 2, figsize=size, squeeze=False, layout="constrained")
        for (against, skip), result in zip(axes, results, strict=True):
            against.set_title(setting_title(result), loc="left")
            draw_token_times(against, result["generate"])
            draw_skipping(skip, result["skip"]["rows"])
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
