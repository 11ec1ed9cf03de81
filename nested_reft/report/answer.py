"""The facts of the answer: what skipping layers did to accuracy and speed, and how sure that is.

`findings.rst` and the page of a report begin with the same five lines, which the template `_answer.rst.j2` writes from
these facts.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from nested_reft.report.deltas import trained_runs
from nested_reft.report.interim import WAITING
from nested_reft.report.off_policy import ACCEPTANCE, kl_column, run_medians
from nested_reft.report.sources import CELL, INSTANCE, Sources
from nested_reft.report.speed import is_measured
from nested_reft.report.statistics import smallest_resolvable

# The probability with which a true change that the answer calls detectable is found to be better or worse.
POWER = 0.8
# The verdicts of a delta that has runs, in the order in which the answer counts them.
DECIDED = ("worse", "better", "equivalent")
VERDICTS = (*DECIDED, "inconclusive", WAITING)


def span(values: pd.Series) -> dict[str, float]:
    """Return the number of the values, the lowest, the median and the highest."""
    return {"number": len(values), "lowest": values.min(), "median": values.median(), "highest": values.max()}


def resolvable(accuracy: pd.DataFrame, confidence: float, power: float) -> pd.Series:
    """Return for each accuracy delta the true delta that is found better or worse with the given probability.

    Args:
        accuracy: the accuracy deltas of all cells, without those that are missing.
        confidence: the level of their intervals.
        power: the probability; 0.5 gives how far from zero a delta has to be measured to be better or worse.
    """
    half_widths = (accuracy["ci_high"] - accuracy["ci_low"]) / 2
    tests = accuracy.groupby(CELL)["absolute_delta"].transform("size")
    values = smallest_resolvable(half_widths, accuracy["standard_error"], tests, confidence, power)
    return pd.Series(values, accuracy.index, dtype=float)


def above_zero(values: pd.Series) -> dict[str, float] | None:
    """Return the span of the values that are above zero, or None if there are none.

    A bootstrap of models that agree on every problem shows no variation, and then says nothing about other problems.
    """
    positive = values[values > 0]
    return span(positive) if len(positive) else None


def coverage_facts(accuracy: pd.DataFrame, num_seeds: int) -> dict[str, Any]:
    """Return what the intervals of the accuracy deltas cover, in words, and how many deltas have fewer seeds.

    Args:
        accuracy: the accuracy deltas of all cells, without those that are missing.
        num_seeds: the number of seeds of the study.
    """
    seeds = accuracy["seeds"] if len(accuracy) else pd.Series([num_seeds])
    lowest, highest = int(seeds.min()), int(seeds.max())
    has_seeds = bool(accuracy["covers"].str.contains("seeds").any()) if len(accuracy) else num_seeds > 1
    number = f"{highest} seeds" if lowest == highest else f"{lowest} to {highest} seeds (runs are missing)"
    problems = "problems within benchmarks"
    return {
        "coverage": f"{number} and {problems}" if has_seeds else f"{problems} (one seed)",
        "covers_seeds": has_seeds,
        "with_fewer_seeds": int((seeds < num_seeds).sum()),
    }


def accuracy_facts(deltas: pd.DataFrame, confidence: float, num_seeds: int) -> dict[str, Any]:
    """Return the range of the accuracies of the baselines and of the instances, and the deltas of each verdict.

    `resolvable` is the range of how far from zero a delta has to be measured to be better or worse, and `detectable`
    that of the true delta that is found so with the probability POWER; both differ between the instances.
    `half_width` is the range of how far the intervals reach. They are None where no interval has a width, and in an
    unfinished study.

    Args:
        deltas: the table of deltas.
        confidence: the level of their intervals.
        num_seeds: the number of seeds of the study.
    """
    accuracy = deltas[deltas["metric"] == "accuracy"].dropna(subset="absolute_delta")
    of_verdict = {
        name: accuracy[accuracy["verdict"] == name].sort_values("absolute_delta", kind="stable") for name in VERDICTS
    }
    others = of_verdict["inconclusive"]
    judged = accuracy[accuracy["verdict"] != WAITING]
    largest = accuracy[accuracy["verdict"].isin(["worse", "better"])]
    largest = largest.sort_values("absolute_delta", key=abs, ascending=False, kind="stable")[:2]
    return {
        "num_tested": len(accuracy),
        "num_baselines": len(accuracy[CELL].drop_duplicates()),
        "baseline": span(accuracy["baseline"]),
        "with_skipping": span(accuracy["instance"]),
        "change": span(accuracy["absolute_delta"]),
        "counts": {name: len(rows) for name, rows in of_verdict.items()},
        "found": [row for name in DECIDED for row in of_verdict[name].to_dict("records")],
        "largest": largest.to_dict("records"),
        "inconclusive": span(others["absolute_delta"]) if len(others) else None,
        "miss_zero": int(((others["ci_low"] > 0) | (others["ci_high"] < 0)).sum()),
        "half_width": above_zero((judged["ci_high"] - judged["ci_low"]) / 2),
        "resolvable": above_zero(resolvable(judged, confidence, 0.5)),
        "detectable": above_zero(resolvable(judged, confidence, POWER)),
        "power": POWER,
        **coverage_facts(accuracy, num_seeds),
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


def sampling_noise(runs: pd.DataFrame) -> float | None:
    """Return how much the speed of sampling differs between instances that skip equally many layers.

    They do the same work, so what they differ by is noise, or the length of the completions.

    Args:
        runs: a row per training run, with its sampled tokens per second.

    Returns:
        The highest speed / the lowest - 1 of the cell and skip ratio with the largest spread, each instance with the
        mean over its seeds; None if no two instances skip equally many layers.
    """
    nested = runs[runs["skip_ratio"] > 0]
    speeds = nested.groupby([*CELL, *INSTANCE])["generated_tok_s"].mean()
    alike = speeds.groupby([*CELL, "skip_ratio"]).agg(lowest="min", highest="max", instances="count")
    alike = alike[alike["instances"] > 1]
    return None if alike.empty else float((alike["highest"] / alike["lowest"] - 1).max())


def by_ratio(table: pd.DataFrame, value: str) -> list[dict[str, float]]:
    """Return the median of a value over the instances of each skip ratio: of all ratios, or of the first and the last.

    Args:
        table: a row per instance, with its `skip_ratio`.
        value: the column of the value; a row without it does not count.
    """
    measured = table.dropna(subset=value)
    rows = [
        {"skip_ratio": ratio, "median": instances[value].median()}
        | ({"bound": instances["bound"].max()} if "bound" in instances else {})
        for ratio, instances in measured.groupby("skip_ratio")
    ]
    return rows if len(rows) <= 3 else [rows[0], rows[-1]]


def speed_facts(deltas: pd.DataFrame, efficiency: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Any]:
    """Return what sampling and whole steps gained in speed at each skip ratio, and whether noise may explain it.

    The noise of sampling is that of `sampling_noise`, and that of whole steps is `timing_noise`, which also judges
    sampling where no two instances skip equally many layers. `sampling_in_noise` and `steps_in_noise` are the rows
    whose gain is smaller than the noise, and `sampling_shown` and `steps_shown` the others. A gain is noise altogether
    if that of the largest ratio is. The times are `too_noisy` to state a gain where one exceeds its bound by more than
    the noise.
    """
    sampling = efficiency["sampling_speed_up"].dropna()
    token_speeds = deltas[deltas["metric"] == "token_speed_tok_s"]
    steps = token_speeds["relative_delta"].dropna()
    noise = timing_noise(runs)
    spread = noise["spread"] if noise else 0.0
    own_spread = sampling_noise(runs)
    sampling_spread = spread if own_spread is None else own_spread
    bounds = {name: efficiency[name].max() for name in ("bound", "bound_with_lm_head")}
    sampling_rows, step_rows = by_ratio(efficiency, "sampling_speed_up"), by_ratio(token_speeds, "relative_delta")
    sampling_shown = [row for row in sampling_rows if abs(row["median"] - 1) >= sampling_spread]
    steps_shown = [row for row in step_rows if abs(row["median"]) >= spread]
    return {
        "speed_up": span(sampling) | bounds | {"by_ratio": sampling_rows} if len(sampling) else None,
        "above_bound": bool((efficiency["sampling_speed_up"] > efficiency["bound"]).any()),
        "token_speed": span(steps) | {"by_ratio": step_rows} if len(steps) else None,
        "noise": noise,
        "sampling_spread": own_spread,
        "sampling_shown": sampling_shown,
        "sampling_in_noise": [row for row in sampling_rows if row not in sampling_shown],
        "sampling_is_noise": bool(sampling_rows) and sampling_rows[-1] not in sampling_shown,
        "too_noisy": any(row["median"] > row["bound"] * (1 + sampling_spread) for row in sampling_rows),
        "steps_shown": steps_shown,
        "steps_in_noise": [row for row in step_rows if row not in steps_shown],
        "steps_are_noise": bool(step_rows) and step_rows[-1] not in steps_shown,
    }


def measured_facts(efficiency: pd.DataFrame, slopes: pd.DataFrame) -> dict[str, Any]:
    """Return what was measured of the speed of roll-outs on a machine that did nothing else.

    Args:
        efficiency: a row per instance, with its measured speed-up.
        slopes: a row per model, or none where no speed was measured for every model.
    """
    columns = ["sampling_speed_up", "speed_up_ci_low", "speed_up_ci_high", "bound", "bound_with_lm_head"]
    by_model = efficiency.drop_duplicates(["model", "skip_ratio"]) if len(slopes) else efficiency.head(0)
    lowest, highest = (by_model.groupby("skip_ratio")[columns].agg(end).reset_index() for end in ("min", "max"))
    rows = [
        {"skip_ratio": low["skip_ratio"], "lowest": low, "highest": high}
        for low, high in zip(lowest.to_dict("records"), highest.to_dict("records"), strict=True)
    ]
    shown = rows if len(rows) <= 3 else [rows[0], rows[-1]]
    return {"measured": shown, "speed_slopes": slopes.to_dict("records")}


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
    config = sources.config
    slopes = tables["speed_slope"] if is_measured(sources) else tables["speed_slope"].head(0)
    return (
        accuracy_facts(tables["deltas"], config["analysis"]["confidence"], len(config["grid"]["seed"]))
        | speed_facts(tables["deltas"], tables["efficiency"], trained_runs(sources))
        | measured_facts(tables["efficiency"], slopes)
        | {"off_policy": off_policy_facts(sources.steps), "trends": tables["trend"].to_dict("records")}
    )
