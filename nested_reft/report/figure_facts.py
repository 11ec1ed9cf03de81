"""The facts that the captions of the figures state, beside those of the answer."""

from typing import Any

import pandas as pd

from nested_reft.report.layer_harm import layer_harm
from nested_reft.report.sources import CELL, INSTANCE, RUN, Sources


def worst_layers(steps: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each cell the layer with the lowest reward, and the reward of the next lowest as `next_reward`."""
    if "skipped_layers" not in steps:
        return []
    rows = []
    for _, layers in layer_harm(steps).groupby(CELL, sort=False):
        lowest = layers.sort_values("reward").to_dict("records")
        rows.append(lowest[0] | {"next_reward": lowest[1]["reward"] if len(lowest) > 1 else None})
    return rows


def durations(steps: pd.DataFrame) -> dict[str, float] | None:
    """Return the mean minutes of the baselines, and of the runs with the largest skip ratio."""
    if "seconds" not in steps or steps["seconds"].isna().all():
        return None
    minutes = steps.groupby(RUN)["seconds"].sum().groupby("skip_ratio").mean() / 60
    return {"baseline": float(minutes.iloc[0]), "largest": float(minutes.iloc[-1])}


def weights_near_one(counts: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each mitigation the share of the tokens whose weight is in the bin around 1, at the largest ratio."""
    if counts.empty:
        return []
    largest = counts[counts["skip_ratio"] == counts["skip_ratio"].max()]
    rows = []
    for mitigation, of_mitigation in largest.groupby("mitigation", sort=False):
        near = of_mitigation.loc[(of_mitigation["weight"] - 1).abs() < 1e-6, "tokens"].sum()
        rows.append({"mitigation": mitigation, "share": near / of_mitigation["tokens"].sum()})
    return rows


def benchmark_ranges(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each benchmark the mean accuracy of the baselines, and the lowest and the highest of an instance."""
    trained = results[results["product"] == "train"]
    rows = []
    for benchmark, scores in trained.groupby("benchmark", sort=False):
        nested = scores[scores["skip_ratio"] > 0].groupby([*CELL, *INSTANCE])["accuracy"].mean()
        baseline = scores.loc[scores["skip_ratio"] == 0, "accuracy"].mean()
        rows.append({"benchmark": benchmark, "baseline": baseline, "lowest": nested.min(), "highest": nested.max()})
    return rows


def figure_facts(sources: Sources) -> dict[str, Any]:
    """Return the facts that the captions of the figures state."""
    losses = sources.details.sft_steps
    by_step = losses.groupby("step")["loss"].mean() if len(losses) else None
    runtimes = sources.results["train_runtime_s"].dropna()
    return {
        "worst_layers": worst_layers(sources.steps),
        "durations": durations(sources.steps),
        "weights_near_one": weights_near_one(sources.details.token_weights),
        "benchmark_ranges": benchmark_ranges(sources.results),
        "sft_loss": None if by_step is None else {"first": by_step.iloc[0], "last": by_step.iloc[-1]},
        "runtime_minutes": {"lowest": runtimes.min() / 60, "highest": runtimes.max() / 60},
        "has_k3": "sampling/k3_kl" in sources.steps and bool(sources.steps["sampling/k3_kl"].notna().any()),
        "largest_ratio": max(sources.config["grid"]["skip_ratio"]),
    }
