"""The facts of the answer: what skipping layers did to accuracy and speed, and how sure that is.

`findings.rst` and the page of a report begin with the same five lines, which the template `_answer.rst.j2` writes from
these facts.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from nested_reft.report.deltas import trained_runs
from nested_reft.report.off_policy import ACCEPTANCE, kl_column, run_medians
from nested_reft.report.sources import CELL, INSTANCE, Sources
from nested_reft.report.statistics import smallest_resolvable


def span(values: pd.Series) -> dict[str, float]:
    """Return the number of the values, the lowest, the median and the highest."""
    return {"number": len(values), "lowest": values.min(), "median": values.median(), "highest": values.max()}


def resolvable(accuracy: pd.DataFrame, confidence: float) -> pd.Series:
    """Return for each accuracy delta how far from zero it has to be measured to be resolved.

    Args:
        accuracy: the accuracy deltas of all cells, without those that are missing.
        confidence: the level of their intervals.
    """
    half_widths = (accuracy["ci_high"] - accuracy["ci_low"]) / 2
    tests = accuracy.groupby(CELL)["absolute_delta"].transform("size")
    values = smallest_resolvable(half_widths, accuracy["standard_error"], tests, confidence)
    return pd.Series(values, accuracy.index, dtype=float)


def accuracy_facts(deltas: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """Return the range of the accuracies of the baselines and of the instances, and the deltas of each verdict.

    `unresolved` also has the medians of how far the intervals reach (`half_width`) and of how far from zero a delta
    has to be measured to be resolved (`resolvable`).

    Args:
        deltas: the table of deltas.
        confidence: the level of their intervals.
    """
    accuracy = deltas[deltas["metric"] == "accuracy"].dropna(subset="absolute_delta")
    resolved = accuracy[accuracy["verdict"] == "resolved"].sort_values("absolute_delta")
    others = accuracy[accuracy["verdict"] == "not resolved"]
    unresolved = span(others["absolute_delta"]) | {
        "half_width": ((others["ci_high"] - others["ci_low"]) / 2).median(),
        "resolvable": resolvable(accuracy, confidence)[others.index].median(),
    }
    lower, higher = (resolved[sign * resolved["absolute_delta"] > 0] for sign in (-1, 1))
    largest = resolved.sort_values("absolute_delta", key=abs, ascending=False)[:2]
    return {
        "num_tested": len(accuracy),
        "num_baselines": len(accuracy[CELL].drop_duplicates()),
        "baseline": span(accuracy["baseline"]),
        "with_skipping": span(accuracy["instance"]),
        "change": span(accuracy["absolute_delta"]),
        "resolved": resolved.to_dict("records"),
        "largest_resolved": largest.to_dict("records"),
        "lower": span(-lower["absolute_delta"]),
        "higher": span(higher["absolute_delta"]),
        "unresolved": unresolved if len(others) else None,
    }


def timing_noise(runs: pd.DataFrame) -> dict[str, float] | None:
    """Return how much the time of the forward and backward passes differs between the instances of a cell.

    Skipping layers does not change these passes, so their times are a control: what they differ by is noise of the
    machine. Each instance has the mean over its seeds, as in the comparison of speeds.

    Args:
        runs: a row per training run, with its seconds per phase.

    Returns:
        `lowest` and `highest` in seconds, and `spread` = highest / lowest - 1, of the cell with the largest spread;
        None if no cell has two instances.
    """
    seconds = runs.groupby([*CELL, *INSTANCE])["fwd_bwd_s"].mean()
    cells = seconds.groupby(CELL).agg(lowest="min", highest="max", instances="count")
    cells = cells[cells["instances"] > 1]
    if cells.empty:
        return None
    spread = cells["highest"] / cells["lowest"] - 1
    widest = cells.loc[spread.idxmax()]
    return {"lowest": widest["lowest"], "highest": widest["highest"], "spread": spread.max()}


def speed_facts(deltas: pd.DataFrame, efficiency: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Any]:
    """Return what sampling and whole steps gained in speed, and whether noise may explain these gains."""
    sampling = efficiency["sampling_speed_up"].dropna()
    steps = deltas.loc[deltas["metric"] == "token_speed_tok_s", "relative_delta"].dropna()
    noise = timing_noise(runs)
    bounds = {name: efficiency[name].max() for name in ("bound", "bound_with_lm_head")}
    return {
        "speed_up": span(sampling) | bounds if len(sampling) else None,
        "token_speed": span(steps) if len(steps) else None,
        "noise": noise,
        "sampling_is_noise": bool(noise and len(sampling) and noise["spread"] > (sampling - 1).abs().median()),
        "steps_are_noise": bool(noise and len(steps) and noise["spread"] > steps.abs().median()),
    }


def off_policy_facts(steps: pd.DataFrame) -> list[dict[str, float]]:
    """Return the KL per token and the acceptance rate at the lowest and the highest skip ratio.

    Each is the median over the steps of a run, on average over the runs: the mean of the points of the figure.
    """
    runs, kl = run_medians(steps), kl_column(steps)
    nested = runs[runs["skip_ratio"] > 0].groupby("skip_ratio")[[kl, ACCEPTANCE]].mean().dropna()
    rows = [
        {"skip_ratio": float(str(ratio)), "kl": row[kl], "acceptance": row[ACCEPTANCE]}
        for ratio, row in nested.iterrows()
    ]
    return rows if len(rows) < 3 else [rows[0], rows[-1]]


def answer_facts(sources: Sources, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all facts that the answer states, from the sources and the tables of a report."""
    return (
        accuracy_facts(tables["deltas"], sources.config["analysis"]["confidence"])
        | speed_facts(tables["deltas"], tables["efficiency"], trained_runs(sources))
        | {"off_policy": off_policy_facts(sources.steps)}
    )
