"""The measured speed of roll-outs: how many times as fast they are with skipped layers, and the slope of the speed.

All skip ratios are timed in each round of a measurement, so that ratios of speeds are taken within rounds. Intervals
are over the rounds.
"""

from typing import Any

import numpy as np
import pandas as pd

from nested_reft.nesting import bounds, num_skipped
from nested_reft.report.sources import Sources
from nested_reft.report.statistics import Floats, median_interval

# Where the speeds of a table come from.
ALONE, IN_TRAINING = "measured alone", "seen during training"
SETUP = ["model", "sampler", "device", "threads"]
SPEED = [*SETUP, "num_skipped", "share", "rounds", "tokens_per_second", "speed_up", "ci_low", "ci_high"]
SPEED += ["bound", "bound_with_lm_head"]
SPEED_SLOPE = [*SETUP, "rounds", "slope", "ci_low", "ci_high", "slope_of_bound", "slope_of_bound_with_lm_head"]


def is_measured(sources: Sources) -> bool:
    """Return whether the speed of every model was measured at every skip ratio of the study.

    Older reports have no such measurement, and it lacks a ratio that is added to the grid until it runs again.
    """
    measured, grid = sources.details.speed_rounds, sources.config["grid"]
    if measured.empty:
        return False
    found = {str(model): rows for model, rows in measured.groupby("model")}
    return all(
        model in found
        and {num_skipped(int(found[model]["num_layers"].iloc[0]), ratio) for ratio in (0.0, *grid["skip_ratio"])}
        <= set(found[model]["num_skipped"])
        for model in grid["model"]
    )


def by_round(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the speeds of one model in completion tokens per second: a row per round, a column per number skipped."""
    speeds = rows.assign(speed=rows["completion_tokens"] / rows["seconds"].astype(float))
    return speeds.pivot(index="round", columns="num_skipped", values="speed")


def numbers_skipped(speeds: pd.DataFrame) -> list[int]:
    """Return the numbers of layers skipped, the columns of `by_round`, in ascending order."""
    return [int(str(k)) for k in speeds]


def relative_slope(speeds: Floats, shares: Floats) -> Floats:
    """Return the slopes (rounds,) of the speed on the share of layers skipped, relative to the speed without skipping.

    A slope of 1 means that the speed grows by 1 % for each 1 % of the layers. Each is that of the least-squares line
    of a round, over the value of this line where nothing is skipped.

    Args:
        speeds: (rounds, m).
        shares: (m,), at least two different ones.
    """
    centered = shares - shares.mean()
    slopes: Floats = speeds @ centered / (centered**2).sum()
    return slopes / (speeds.mean(axis=1) - slopes * shares.mean())


def setup_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Return how the speed of a model was measured, and the number of rounds."""
    return {name: rows[name].iloc[0] for name in SETUP} | {"rounds": rows["round"].nunique()}


def bounds_of(rows: pd.DataFrame, k: int) -> tuple[float, float]:
    """Return N / (N - k), and the bound with the output projection, for one model."""
    sizes = (int(rows[name].iloc[0]) for name in ("num_layers", "layer_parameters", "lm_head_parameters"))
    num_layers, *parameters = sizes
    return bounds(num_layers, k, *parameters)


def speed_table(measured: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return a row per model and number of layers skipped: the speed, the speed-up with its interval, and the bounds.

    Args:
        measured: a row per model, round and number of layers skipped, as `speed_rounds.csv` has them.
        confidence: the level of the intervals.
    """
    found = []
    for _, rows in measured.groupby("model", sort=False) if len(measured) else []:
        speeds, num_layers = by_round(rows), int(rows["num_layers"].iloc[0])
        for k in numbers_skipped(speeds):
            row = setup_of(rows) | {"num_skipped": k, "share": k / num_layers, "tokens_per_second": speeds[k].median()}
            row["bound"], row["bound_with_lm_head"] = bounds_of(rows, k)
            if k:
                ratios = speeds[k] / speeds[0]
                low, high = median_interval(ratios, confidence)
                row |= {"speed_up": ratios.median(), "ci_low": low, "ci_high": high}
            found.append(row)
    return pd.DataFrame(found).reindex(columns=SPEED)


def speed_slope_table(measured: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return a row per model: the relative slope of the speed on the share of layers skipped, and those of the bounds.

    Args:
        measured: a row per model, round and number of layers skipped, as `speed_rounds.csv` has them.
        confidence: the level of the intervals.
    """
    found = []
    for _, rows in measured.groupby("model", sort=False) if len(measured) else []:
        speeds = by_round(rows)
        shares = np.array(numbers_skipped(speeds)) / int(rows["num_layers"].iloc[0])
        slopes = relative_slope(speeds.to_numpy(), shares)
        of_bounds = relative_slope(np.array([bounds_of(rows, k) for k in numbers_skipped(speeds)]).T, shares)
        low, high = median_interval(slopes, confidence)
        row = setup_of(rows) | {"slope": np.median(slopes), "ci_low": low, "ci_high": high}
        found.append(row | {"slope_of_bound": of_bounds[0], "slope_of_bound_with_lm_head": of_bounds[1]})
    return pd.DataFrame(found).reindex(columns=SPEED_SLOPE)
