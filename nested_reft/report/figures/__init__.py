"""The figures of a report: name -> the function that draws it from the sources and the tables of the report.

All figures share one style, and their colors remain distinct for color-blind readers. A function returns a figure,
or a sentence that says what its sources lack; only `style.save` writes files.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from nested_reft.config.layout import DATASET_FIGURE
from nested_reft.report.figures.accuracy import benchmarks, dataset_figure, forest, heat_map
from nested_reft.report.figures.common import Draw
from nested_reft.report.figures.off_policy import off_policy, off_policy_steps, token_weights
from nested_reft.report.figures.speed import accuracy_time, frontier, speed_up, time_split
from nested_reft.report.figures.training import layers, reward_cost, reward_curves, sft_stages

FIGURES: dict[str, Draw] = {
    "forest": forest,
    "heat_map": heat_map,
    "frontier": frontier,
    "accuracy_time": accuracy_time,
    "benchmarks": benchmarks,
    "speed_up": speed_up,
    "time_split": time_split,
    "reward": reward_curves,
    "reward_cost": reward_cost,
    "layers": layers,
    "off_policy": off_policy,
    "off_policy_steps": off_policy_steps,
    "token_weights": token_weights,
    "sft_stages": sft_stages,
}


def figures_of_study(config: Mapping[str, Any]) -> dict[str, Draw]:
    """Return the figures of a study by name: one for each of its datasets, and those of all datasets together."""
    datasets = config["grid"]["dataset"]
    return {DATASET_FIGURE.format(dataset=name): partial(dataset_figure, dataset=name) for name in datasets} | FIGURES
