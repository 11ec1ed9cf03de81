"""The figures of a report: name -> the function that draws it from the sources and the tables of the report.

All figures share one style, and their colors remain distinct for color-blind readers. A function returns a figure,
or a sentence that says what its sources lack; only `style.save` writes files.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from nested_reft.config.layout import DATASET_FIGURE
from nested_reft.report.figures.accuracy import dataset_figure, frontier, heat_map
from nested_reft.report.figures.common import Draw
from nested_reft.report.figures.off_policy import off_policy
from nested_reft.report.figures.speed import speed_up, time_split
from nested_reft.report.figures.training import reward_curves

FIGURES: dict[str, Draw] = {
    "frontier": frontier,
    "heat_map": heat_map,
    "speed_up": speed_up,
    "time_split": time_split,
    "off_policy": off_policy,
    "reward": reward_curves,
}


def figures_of_study(config: Mapping[str, Any]) -> dict[str, Draw]:
    """Return the figures of a study by name: one for each of its datasets, and those of all datasets together."""
    datasets = config["grid"]["dataset"]
    return {DATASET_FIGURE.format(dataset=name): partial(dataset_figure, dataset=name) for name in datasets} | FIGURES
