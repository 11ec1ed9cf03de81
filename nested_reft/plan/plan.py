"""The plan of a study: its rows, its disk space, what it can resolve, and what to change where a job does not fit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from nested_reft.config.study import Study
from nested_reft.plan.cards import GIB, Card
from nested_reft.plan.costs import trained_parameters
from nested_reft.plan.planner import COMPLETION_TOKENS, USABLE_MEMORY, Planner, Row
from nested_reft.plan.resolution import DEFAULT_PILOT, Pilot, Resolution, resolution
from nested_reft.study.disk import SECTION_OF, bytes_needed, contents


class Plan(NamedTuple):
    """The plan of a study.

    Attributes:
        study: the name of the study.
        rows: a row for each stage and model.
        disk: the disk space in bytes, without models whose shape is unknown.
        disk_contents: what the disk space is for, as text.
        at_once: the GPUs that work at the same time; on a CPU, the jobs.
        resolution: the smallest deltas that the study resolves.
        warnings: a sentence for each row that does not fit its card, and for each model whose shape is unknown.
        savings: a sentence for each change of the trainings that would save GPU hours.
        assumptions: what was assumed.
    """

    study: str
    rows: list[Row]
    disk: int
    disk_contents: str
    at_once: int
    resolution: Resolution
    warnings: list[str]
    savings: list[str]
    assumptions: list[str]


def make_plan(
    study: Study,
    cards: Mapping[str, Card],
    bench: list[Path] | None = None,
    pilot: Pilot = DEFAULT_PILOT,
    at_once: int = 1,
) -> Plan:
    """Return the plan of a study.

    Args:
        study: the study.
        cards: the card of each model.
        bench: files with measurements on the card.
        pilot: the variances of a delta.
        at_once: the GPUs that work at the same time; on a CPU, the jobs.
    """
    planner = Planner(study, cards, bench)
    rows = planner.rows()
    parameters = {name: shape.parameters for name, shape in planner.shapes.items() if shape}
    jobs = Counter({(row.stage, row.model): row.jobs for row in rows})
    trained = {
        (stage, name): trained_parameters(shape, getattr(study, section))
        for stage, section in SECTION_OF.items()
        for name, shape in planner.shapes.items()
        if shape
    }
    jobs_at_once = max(1, at_once // max(1, study.jobs.most_gpus(study.grid.model)))
    disk = bytes_needed(study, parameters, jobs, jobs_at_once, trained)
    return Plan(
        study.study,
        rows,
        disk,
        contents(study),
        at_once,
        resolution(study, planner.sizes, pilot),
        list(warnings(planner, rows)),
        list(savings(planner, rows)),
        list(assumptions(planner)),
    )


def warnings(planner: Planner, rows: list[Row]) -> Iterator[str]:
    """Yield a sentence for each model whose shape is unknown, and for each row that does not fit its card."""
    for name, shape in planner.shapes.items():
        if shape is None:
            path = planner.study.models[name].path
            yield (
                f"the shape of {name} is unknown, because {path} is neither here nor in the table of known models, or "
                "has experts; its jobs are not part of the sums. Download the model and give its folder as `path`"
            )
    for row in rows:
        if row.costs and not row.fits:
            needed, usable = row.largest.peak.total / GIB, USABLE_MEMORY * row.card.memory / GIB
            remedies = planner.fitting(row)
            advice = f"What would fit: {'; '.join(remedies)}" if remedies else "No change of one key would fit"
            yield (
                f"{row.stage} {row.model} needs {needed:.0f} GiB and does not fit {row.card.name} ({usable:.0f} GiB "
                f"usable). {advice}"
            )


def savings(planner: Planner, rows: list[Row]) -> Iterator[str]:
    """Yield the GPU hours that each change of sampling would save in the trainings."""
    settings = planner.study.training
    changes = []
    if settings.sampler != "generate" and settings.sampling_dtype is None and settings.dtype == "float32":
        changes.append(("sampling_dtype: bfloat16", {"sampling_dtype": "bfloat16"}))
    if settings.sampler not in ("engine-compiled", "vllm"):  # the plan does not know how fast vLLM is
        changes.append(("sampler: engine-compiled", {"sampler": "engine-compiled"}))
    trainings = [row for row in rows if row.stage == "train" and row.costs and row.card.is_gpu]
    for name, values in changes:
        changed = Planner(
            planner.study.model_copy(update={"training": settings.model_copy(update=values)}), planner.cards
        )
        changed.factors = planner.factors
        before = sum(row.gpu_hours for row in trainings)
        after = sum(row.gpu_hours for row in changed.rows() if row.stage == "train")
        if after < 0.98 * before:
            yield f"training.{name} would save {before - after:,.0f} of {before:,.0f} GPU hours"


def assumptions(planner: Planner) -> Iterator[str]:
    """Yield what the plan assumes."""
    study = planner.study
    for card in {card.name: card for card in planner.cards.values()}.values():
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}" for dtype, rate in card.flops.items())
        size = f"{card.memory / GIB:.0f} GiB" if card.is_gpu else f"{study.jobs.threads} threads"
        yield (
            f"{card.name}: {size}, {rates}, {card.bandwidth / 1e9:,.0f} GB/s ({card.source}); reached are "
            f"{card.update_efficiency:.0%} of the FLOP/s in updates, {card.decode_efficiency:.0%} of them in decode "
            f"steps, and {card.bandwidth_efficiency:.0%} of the bandwidth; {1e6 * card.op_seconds:.3g} µs start an "
            f"operation, and {card.start_seconds:.0f} s a job"
        )
    if planner.factors:
        measured = ", ".join(f"{phase} {factor:.2f}" for phase, factor in planner.factors.items())
        yield f"measured time over planned time: {measured}; the times of these phases are multiplied by it"
    texts = [*planner.datasets.values(), *planner.benchmarks.values()]
    yield from (f"texts: {text}" for text in dict.fromkeys(text.assumption for text in texts) if text)
    if study.evaluation.max_new_tokens > COMPLETION_TOKENS:
        yield f"a completion of an evaluation has {COMPLETION_TOKENS} tokens on average"
    yield "checkpoints and models are written and read at 1 GB/s"
