"""The harm by each skipped layer: the mean reward of the steps whose roll-outs skipped it."""

import math

import pandas as pd

from nested_reft.report.rounding import stated_table
from nested_reft.report.sources import CELL

COLUMNS = [*CELL, "layer", "steps", "reward", "interval", "all_nested", "baseline"]


def layer_harm(steps: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell and layer that any roll-out skipped.

    A step that skips several layers counts for each of them. The layers are drawn at random at each step, so that a
    lower mean is due to the layer, up to the noise that the interval shows.

    Args:
        steps: a row per run and step, with `reward` and `skipped_layers`, such as "4 7 12".

    Returns:
        `steps` and mean `reward` of the steps that skipped the layer; `interval`, half the width of its normal 95 %
        interval; `all_nested`, the mean reward of all steps that skipped layers; `baseline`, that of the baseline.
    """
    rows = []
    for (model, dataset), cell in steps.dropna(subset="reward").groupby(CELL, sort=False):
        nested = cell[cell["skip_ratio"] > 0].dropna(subset="skipped_layers")
        layers = nested["skipped_layers"].astype(str).str.split()
        exploded = nested.assign(layer=layers).explode("layer").dropna(subset="layer").astype({"layer": int})
        for layer, rewards in exploded.groupby("layer")["reward"]:
            error = rewards.std() / math.sqrt(len(rewards)) if len(rewards) > 1 else math.nan
            rows.append(
                {
                    "model": model,
                    "dataset": dataset,
                    "layer": layer,
                    "steps": len(rewards),
                    "reward": rewards.mean(),
                    "interval": 1.96 * error,
                    "all_nested": nested["reward"].mean(),
                    "baseline": cell.loc[cell["skip_ratio"] == 0, "reward"].mean(),
                }
            )
    return stated_table(pd.DataFrame(rows, columns=COLUMNS))
