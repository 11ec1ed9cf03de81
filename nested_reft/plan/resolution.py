"""The smallest delta of the accuracy that a study can resolve, from the variances of a finished study."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.plan.power import POWER, Pilot, alike, design_of, read_study, smallest_delta

# The means over 54 instances (2 models, 3 training sets, 9 instances, 3 seeds) and 3 benchmarks, by `read_pilot`.
DEFAULT_PILOT = Pilot(
    seed=0.00049,
    problem=np.array([0.00043]),
    interaction=np.array([0.062]),
    sampling=np.array([math.nan]),
    source="docs/reports/embedded-full",
)
# Further numbers of seeds to compare with.
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
    """Return the variances of the deltas of a finished study, averaged over its instances and benchmarks.

    Args:
        report: the folder of its report.

    Raises:
        UserError: the folder is not a report, or no instance has two seeds in common with its baseline.
    """
    pilot, _, _ = read_study(report)
    if math.isnan(pilot.seed):
        raise UserError(
            f"--pilot {report} is a study with one seed, which contains no information about the variation between "
            "seeds; give a study with two or more"
        )
    return alike(pilot)


def resolution(study: Study, sizes: list[int], pilot: Pilot = DEFAULT_PILOT) -> Resolution:
    """Return the smallest deltas that a study resolves with its own number of seeds, and with more.

    Args:
        study: the study.
        sizes: the number of problems of each of its benchmarks.
        pilot: the variances of a delta.
    """
    design = design_of(study.model_dump(), tuple(sizes))
    numbers = [design.seeds, *(number for number in MORE_SEEDS if number > design.seeds)]
    by_seeds = {number: smallest_delta(pilot, design._replace(seeds=number)) for number in numbers}
    return Resolution(design.seeds, by_seeds, POWER, pilot.source)
