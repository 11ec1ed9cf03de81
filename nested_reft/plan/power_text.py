"""The power of a study as text and as a figure."""

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nested_reft.plan.power import (
    MORE_SEEDS,
    POWER,
    Costs,
    Design,
    Pilot,
    allocations,
    best_allocation,
    cell_seconds,
    equivalence_power,
    false_claims,
    power,
    seeds_for_margin,
    smallest_delta,
    standard_error,
)
from nested_reft.plan.text import WIDTH
from nested_reft.records.progress import duration
from nested_reft.study.status_text import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def points(share: float) -> str:
    """Return a size of a change of the accuracy in points, or `unknown`."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f}"


def number_of(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def sizes_of(design: Design) -> str:
    """Return the seeds, the samples and the problems of a design."""
    return (
        f"{number_of(design.seeds, 'seed')}, {number_of(design.samples, 'sample')} per problem, "
        f"{number_of(sum(design.sizes), 'problem')}"
    )


def seed_numbers(design: Design) -> list[int]:
    """Return the numbers of seeds that are compared: those of the design, and some more."""
    return sorted({design.seeds, *MORE_SEEDS})


def noise_line(pilot: Pilot, design: Design) -> str:
    """Return what each source adds to a delta of one seed, as a standard deviation in points."""
    sizes = np.array(design.sizes, dtype=float)

    def of_mean(variance: np.ndarray) -> float:
        found = float((np.maximum(0.0, variance) / sizes).sum()) / len(sizes) ** 2
        return math.sqrt(found) if found >= 0 else math.nan

    parts = {
        "seed": math.sqrt(max(0.0, pilot.seed)) if pilot.seed == pilot.seed else math.nan,
        "choice of problems": of_mean(pilot.problem),
        "seed x problem": of_mean(pilot.interaction),
        "sampling": of_mean(pilot.sampling / design.samples),
    }
    return ", ".join(f"{name} {points(size)}" for name, size in parts.items())


def paragraphs(pilot: Pilot, design: Design) -> Iterator[str]:
    """Yield what the table of seeds means, and the seeds that the margin takes."""
    level = 1 - design.confidence
    margin = f"{100 * design.margin:g} point{'' if design.margin == 0.01 else 's'}"
    yield (
        f"Smallest delta: the true change of the accuracy, in points, that is found with a probability of {POWER:.0%} "
        "(better or worse). Equivalent: the probability that an instance without any change is called equivalent, at "
        f"a margin of {margin}. The test is that of the report: p < {level:.3g} after Holm's correction over "
        f"{number_of(design.instances, 'instance')}, for a single instance with an effect."
    )
    if design.seeds == 1:
        text = "With one seed the test compares two trained models, and not two methods."
        if not math.isnan(pilot.seed):
            text += (
                " Two trainings of the same method, which differ in their seeds, are called different in "
                f"{false_claims(pilot, design):.1%} of the comparisons, and not in {level / design.instances:.1%}."
            )
        yield text
    if math.isnan(pilot.seed):
        yield (
            "What several seeds find is unknown, because the variance between seeds is: give a study with two or more "
            "seeds, or --seed-sd."
        )
        return
    seeds = seeds_for_margin(pilot, design)
    if seeds is None:
        yield (
            f"No number of seeds shows with a probability of {POWER:.0%} that an instance without any change is "
            f"within the margin of {margin}: this takes more problems or samples."
        )
    else:
        yield (
            f"Seeds for the margin: with {number_of(seeds, 'seed')}, an instance without any change is called "
            f"equivalent with a probability of {POWER:.0%}."
        )
    if np.isnan(pilot.sampling).any():
        yield "What more samples per problem change is unknown, because the pilot has one sample per problem."


def seeds_table(pilot: Pilot, design: Design) -> list[str]:
    """Return the table of the smallest delta and of the power to show equivalence, by the number of seeds."""
    rows: list[tuple[str, ...]] = [("seeds", "smallest delta", "equivalent")]
    for seeds in seed_numbers(design):
        changed = design._replace(seeds=seeds)
        error = standard_error(pilot, changed)
        if not math.isnan(error.size):
            equivalent = equivalence_power(0.0, error, changed)
            rows.append((str(seeds), points(smallest_delta(pilot, changed)), f"{equivalent:.0%}"))
    return aligned(rows)


def budget_line(pilot: Pilot, design: Design, costs: Costs, budget: float) -> str:
    """Return the best way to spend a budget.

    Args:
        pilot: the variances of a delta.
        design: the study.
        costs: the time of its parts.
        budget: seconds for a cell.
    """
    text = (
        f"Budget for a cell, the {design.instances + 1} runs of each seed: {duration(budget)}, where a training takes "
        f"{duration(costs.training)} and the evaluation of an answer {costs.answer:.2g} s. "
    )
    best = best_allocation(list(allocations(pilot, design, costs, budget)))
    if best is None:
        return text + "This does not pay for two seeds."
    text += (
        f"Cheapest allocation with the smallest delta: {sizes_of(best.design)}, {points(best.delta)} points in "
        f"{duration(best.seconds)}."
    )
    if design.seeds > 1 and best.design != design:
        own = smallest_delta(pilot, design)
        text += (
            f" The study itself: {sizes_of(design)}, {points(own)} points in {duration(cell_seconds(design, costs))}."
        )
    return text


def render(pilot: Pilot, design: Design, costs: Costs | None, budget: float | None) -> str:
    """Return the power of a study as text.

    Args:
        pilot: the variances of a delta.
        design: the study.
        costs: the time of its parts, or None if it is unknown.
        budget: seconds for a cell; without it that of the study itself, if it has several seeds.
    """
    lines = [f"Power of a study with {sizes_of(design)} in {number_of(len(design.sizes), 'benchmark')}", ""]
    lines += textwrap.wrap(
        f"Standard deviation of a delta of one seed, in points, from {pilot.source}: {noise_line(pilot, design)}.",
        WIDTH,
    )
    lines += ["", *seeds_table(pilot, design)]
    for text in paragraphs(pilot, design):
        lines += ["", *textwrap.wrap(text, WIDTH)]
    if costs is not None and not math.isnan(pilot.seed):
        if budget is None and design.seeds > 1:
            budget = cell_seconds(design, costs)
        if budget is not None:
            lines += ["", *textwrap.wrap(budget_line(pilot, design, costs, budget), WIDTH)]
    return "\n".join(lines)


def power_figure(pilot: Pilot, design: Design) -> "Figure":
    """Draw the power against the true delta, a line for each number of seeds."""
    from nested_reft.report.style import BASELINE, PALETTE, SMALL, STYLE, WIDTH, plt

    known = []
    for seeds in seed_numbers(design):
        changed = design._replace(seeds=seeds)
        if not math.isnan(standard_error(pilot, changed).size):
            known.append((seeds, changed, smallest_delta(pilot, changed)))
    longest = 1.4 * max(max(delta for _, _, delta in known), design.margin)
    deltas = np.linspace(0, longest, 300)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
        for color, (seeds, changed, smallest) in zip(PALETTE, known, strict=False):
            found = power(deltas, standard_error(pilot, changed), changed)
            label = f"{number_of(seeds, 'seed')}: {points(smallest)} points{', two trained models' * (seeds == 1)}"
            line: dict[str, Any] = {"color": color, "linestyle": "--" if seeds == 1 else "-"}
            axis.plot(100 * deltas, 100 * found, label=label, linewidth=2.2 if seeds == design.seeds else 1.3, **line)
            axis.plot(100 * smallest, 100 * POWER, "o", color=color, markersize=4)
        axis.axhline(100 * POWER, color=BASELINE, linewidth=0.8, linestyle=":")
        axis.axvline(100 * design.margin, color=BASELINE, linewidth=0.8, linestyle=":")
        axis.annotate(
            " margin", (100 * design.margin, 100), color=BASELINE, fontsize=SMALL, va="top", annotation_clip=False
        )
        axis.set(xlim=(0, 100 * longest), ylim=(0, 102), xlabel="true delta, points", ylabel="found, % of the studies")
        title = f"{number_of(design.samples, 'sample')} per problem, {number_of(sum(design.sizes), 'problem')}"
        axis.legend(
            title=f"{title}\nfound with a probability of {POWER:.0%} from", loc="lower right", alignment="left"
        )
    return figure
