"""The smallest delta of the accuracy that a study can resolve, from the variances of a finished study."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nested_reft.config.study import BASELINE, Study, instances
from nested_reft.errors import UserError
from nested_reft.report.statistics import VarianceComponents, smallest_delta, variance_components


class Pilot(NamedTuple):
    """The variances of a finished study, and its name."""

    components: VarianceComponents
    source: str


# The means over 54 instances (2 models, 3 training sets, 9 instances, 3 seeds), by `read_pilot`.
DEFAULT_PILOT = Pilot(VarianceComponents(seed=0.00049, problem=0.00043, residual=0.062), "docs/reports/embedded-full")
# The probability with which a delta of this size would be resolved, and further numbers of seeds to compare with.
POWER = 0.8
MORE_SEEDS = (3, 5, 10)


class Resolution(NamedTuple):
    """The smallest deltas that a study resolves.

    Attributes:
        seeds: the number of seeds of the study.
        by_seeds: number of seeds -> delta of the accuracy, for this study and for studies with more seeds.
        power: the probability with which a delta of this size is resolved.
        pilot: where the variances come from.
    """

    seeds: int
    by_seeds: dict[int, float]
    power: float
    pilot: str


def read_pilot(report: Path) -> Pilot:
    """Return the variances of the deltas of a finished study, averaged over its instances.

    Args:
        report: the folder of its report.

    Raises:
        UserError: the folder is not a report, or the study has a single seed or unfinished runs.
    """
    from nested_reft.report.deltas import cell_scores
    from nested_reft.report.sources import read_sources

    sources = read_sources(report)
    grid = sources.config["grid"]
    if len(grid["seed"]) < 2:
        raise UserError(
            f"--pilot {report} is a study with one seed, which contains no information about the variation between "
            "seeds; give a study with two or more"
        )
    scores = sources.problem_scores.query("product == 'train'")
    found = []
    for model, dataset in itertools.product(grid["model"], grid["dataset"]):
        cell = scores[(scores["model"] == model) & (scores["dataset"] == dataset)]
        if cell.empty:
            continue
        by_instance, benchmarks = cell_scores(cell, [BASELINE, *instances(grid)], grid["seed"])
        differences = by_instance[1:] - by_instance[0]  # (instances, seeds, n)
        found += [variance_components(row, benchmarks) for row in differences if not np.isnan(row).any()]
    if not found:
        raise UserError(f"--pilot {report} has no instance that was trained with all seeds; finish that study first")
    means = np.mean(found, axis=0)
    return Pilot(VarianceComponents(*(float(value) for value in means)), str(report))


def resolution(study: Study, sizes: list[int], pilot: Pilot = DEFAULT_PILOT) -> Resolution:
    """Return the smallest deltas that a study resolves with its own number of seeds, and with more.

    Args:
        study: the study.
        sizes: the number of problems of each of its benchmarks.
        pilot: the variances of a delta.
    """
    seeds, count = len(study.grid.seed), len(instances(study.grid.model_dump()))
    samples = study.evaluation.num_samples

    def delta(number: int) -> float:
        return smallest_delta(pilot.components, sizes, number, count, study.analysis.confidence, POWER, samples)

    numbers = [seeds, *(number for number in MORE_SEEDS if number > seeds)]
    return Resolution(seeds, {number: delta(number) for number in numbers}, POWER, pilot.source)
