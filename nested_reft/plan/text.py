"""A plan as text, as a figure of the hours, and as JSON."""

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from nested_reft.plan.cards import GIB
from nested_reft.plan.costs import Memory
from nested_reft.plan.plan import Plan
from nested_reft.plan.planner import Row
from nested_reft.records.progress import duration
from nested_reft.study.disk import gigabytes
from nested_reft.study.status_text import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 118
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "logits",
    "kv_cache": "KV cache",
    "fixed": "fixed",
}
PHASES = ("start", "generate", "score", "update", "exchange", "optimizer", "other", "checkpoints")


def amount(number: float) -> str:
    """Return a large number with its unit: `1.54 B`, `7.2e+18`."""
    if number >= 1e15:
        return f"{number:.1e}"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"


def gibibytes(number: float) -> str:
    """Return bytes in GiB, with two digits where there are few."""
    return f"{number / GIB:.2f}" if number < 10 * GIB else f"{number / GIB:.0f}"


def wall_time(row: Row) -> str:
    """Return the time of a job in words, or the range of times."""
    shortest, longest = (duration(seconds) for seconds in row.wall_seconds)
    return shortest if shortest == longest else f"{shortest} to {longest}"


def name_of(row: Row) -> tuple[str, str]:
    """Return the first two columns of a row."""
    return row.stage, row.model


def jobs_table(plan: Plan) -> list[str]:
    """Return the table of jobs: their number, size, time and hours."""
    rows: list[tuple[str, ...]] = [
        ("stage", "model", "jobs", "parameters", "trained", "FLOPs", "tokens", "card", "time of a job", "GPU hours")
    ]
    for row in plan.rows:
        if not row.costs:
            rows.append((*name_of(row), str(row.jobs), *["unknown"] * 3, "", row.card.name, "unknown", "unknown"))
            continue
        cost = row.largest
        rows.append(
            (
                *name_of(row),
                str(row.jobs),
                amount(cost.parameters),
                amount(cost.trained) if cost.trained else "",
                amount(sum(cost.flops for cost in row.costs)),
                amount(sum(cost.tokens for cost in row.costs)),
                row.card.name if cost.gpus < 2 else f"{cost.gpus} {row.card.name}",
                wall_time(row),
                f"{row.gpu_hours:.1f}" if row.card.is_gpu else "",
            )
        )
    known = [cost for row in plan.rows for cost in row.costs]
    rows.append(
        (
            "all",
            "",
            str(sum(row.jobs for row in plan.rows)),
            "",
            "",
            amount(sum(cost.flops for cost in known)),
            amount(sum(cost.tokens for cost in known)),
            "",
            "",
            f"{sum(row.gpu_hours for row in plan.rows):.1f}",
        )
    )
    return aligned(rows)


def memory_table(plan: Plan) -> list[str]:
    """Return the table of memory: the parts of the largest job of each row in its largest phase, in GiB."""
    rows: list[tuple[str, ...]] = [("stage", "model", "phase", *PARTS.values(), "sum", "of")]
    for row in plan.rows:
        if row.costs:
            peak = row.largest.peak
            limit = gibibytes(row.card.memory) if row.card.is_gpu else ""
            fits = "" if row.fits else "does not fit"
            values = [gibibytes(getattr(peak, part)) for part in PARTS]
            rows.append((*name_of(row), row.largest.peak_phase, *values, gibibytes(peak.total), f"{limit} {fits}"))
    return aligned(rows)


def resolution_lines(plan: Plan) -> list[str]:
    """Return what the study can resolve."""
    found = plan.resolution
    own, *more = (f"{delta:.3f} with {seeds} seed{'s' * (seeds > 1)}" for seeds, delta in found.by_seeds.items())
    text = f"Smallest delta of the accuracy that is resolved with a probability of {found.power:.0%}: {own}"
    if found.seeds == 1:
        text += ", which then holds for these trained models and not for other seeds"
    text += f" ({', '.join(more)})." if more else "."
    return textwrap.wrap(f"{text} Variances: {found.pilot}.", WIDTH)


def render(plan: Plan) -> str:
    """Return a plan as text."""
    lines = [f"Plan of the study {plan.study!r}", "", *jobs_table(plan), ""]
    at_once, elapsed = plan.at_once, elapsed_seconds(plan)
    unit = "GPU" if any(row.card.is_gpu for row in plan.rows) else "job"
    lines += [f"With {at_once} {unit}{'s' * (at_once > 1)} at once the study takes {duration(elapsed)}."]
    lines += [f"Disk: {gigabytes(plan.disk)} for {plan.disk_contents}.", ""]
    lines += ["Memory of one process at its peak, in GiB", *memory_table(plan), ""]
    lines += resolution_lines(plan)
    for warning in plan.warnings:
        lines += ["", *textwrap.wrap(f"Warning: {warning}.", WIDTH)]
    for saving in plan.savings:
        lines += ["", *textwrap.wrap(f"Time: {saving}.", WIDTH)]
    lines += ["", "Assumed:"]
    for assumption in plan.assumptions:
        lines += textwrap.wrap(assumption, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def elapsed_seconds(plan: Plan) -> float:
    """Return the time of a study: the work over the devices, and at least the longest chain of stages."""
    work = sum(row.device_seconds for row in plan.rows)
    longest: Counter[str] = Counter()
    for row in plan.rows:
        if row.costs:
            longest[row.model] += row.wall_seconds[1]  # type: ignore[assignment]
    return max(work / plan.at_once, max(longest.values(), default=0.0))


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values: bytes, seconds, operations and tokens."""
    rows = []
    for row in plan.rows:
        entry: dict[str, Any] = {"stage": row.stage, "model": row.model, "jobs": row.jobs, "card": row.card.name}
        if row.costs:
            cost = row.largest
            entry |= {
                "parameters": cost.parameters,
                "trained_parameters": cost.trained,
                "gpus_per_job": cost.gpus,
                "flops": sum(cost.flops for cost in row.costs),
                "tokens": sum(cost.tokens for cost in row.costs),
                "seconds_per_job": row.wall_seconds,
                "seconds_by_phase": phase_seconds(row),
                "gpu_hours": row.gpu_hours,
                "peak_phase": cost.peak_phase,
                "memory": {phase: with_total(parts) for phase, parts in cost.memory.items()},
                "fits": row.fits,
            }
        rows.append(entry)
    return {
        "study": plan.study,
        "rows": rows,
        "gpu_hours": sum(row.gpu_hours for row in plan.rows),
        "seconds": elapsed_seconds(plan),
        "at_once": plan.at_once,
        "disk_bytes": plan.disk,
        "smallest_delta": plan.resolution._asdict(),
        "warnings": plan.warnings,
        "savings": plan.savings,
        "assumptions": plan.assumptions,
    }


def with_total(memory: Memory) -> dict[str, float]:
    """Return the parts of a memory and their sum."""
    return memory._asdict() | {"total": memory.total}


def phase_seconds(row: Row) -> dict[str, float]:
    """Return phase -> the time of all jobs of a row."""
    total: dict[str, float] = {}
    for cost in row.costs:
        for phase, seconds in cost.seconds.items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total


def hours_figure(plan: Plan) -> "Figure":
    """Draw where the hours go: a bar for each row of the plan, divided by phase."""
    from nested_reft.report.style import BASELINE, PALETTE, STYLE, WIDTH, plt

    rows = [row for row in plan.rows if row.costs][::-1]
    on_gpu = any(row.card.is_gpu for row in rows)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 1.3 + 0.42 * len(rows)), layout="constrained")
        left = [0.0] * len(rows)
        for color, phase in zip([*PALETTE, BASELINE], PHASES, strict=True):
            hours = [
                phase_seconds(row).get(phase, 0.0) / 3600 * (max(1, row.largest.gpus) if on_gpu else 1) for row in rows
            ]
            if any(hours):
                axis.barh(range(len(rows)), hours, left=left, color=color, height=0.6, label=phase)
                left = [start + width for start, width in zip(left, hours, strict=True)]
        for place, (row, end) in enumerate(zip(rows, left, strict=True)):
            axis.annotate(f" {end:.3g} h" + ("" if row.fits else ", does not fit"), (end, place), va="center")
        axis.set_yticks(range(len(rows)), [f"{row.stage} {row.model}, {row.jobs} jobs" for row in rows])
        axis.set_xlabel("GPU hours" if on_gpu else "hours")
        axis.margins(x=0.22)
        axis.grid(axis="y", visible=False)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(PHASES))
    return figure
