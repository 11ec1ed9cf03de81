"""The tables of a report, each a pure function of its sources or of the table of deltas."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from nested_reft.nesting import bounds, num_skipped
from nested_reft.report.clusters import cluster_codes
from nested_reft.report.deltas import problems_of
from nested_reft.report.sources import CELL, INSTANCE, Sources, grid_of, instance_label
from nested_reft.report.speed import ALONE, IN_TRAINING
from nested_reft.report.statistics import best_by_chance, problem_interval


def table1(shapes: Mapping[str, Mapping[str, int]], skip_ratios: list[float]) -> pd.DataFrame:
    """Return Table 1: layers N, width W, and the number of layers skipped at each ratio.

    Args:
        shapes: model -> its `num_layers` and `width`, as `prepare model` found them.
        skip_ratios: the ratios of the grid.
    """
    return pd.DataFrame(
        {
            "model": model,
            "N": shape["num_layers"],
            "W": shape["width"],
            **{f"{100 * ratio:g}%": num_skipped(shape["num_layers"], ratio) for ratio in skip_ratios},
        }
        for model, shape in shapes.items()
    )


def round_toward_zero(value: float, decimals: int = 3) -> float:
    """Return the magnitude, truncated to this number of decimals, as the paper prints its means."""
    return math.floor(round(abs(value) * 10**decimals, 6)) / 10**decimals


MEAN = "mean over datasets"
EXTREME = ["instance", "delta", "paper_form", "ci_low", "ci_high", "verdict"]
TABLE_2 = [*CELL, *(f"{which}_{what}" for which in ("best", "worst") for what in EXTREME), "best_by_chance"]


def best_and_worst(deltas: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of Table 2 for one cell.

    Args:
        deltas: a row per instance, with the columns that `table2` describes.
    """
    if deltas["absolute_delta"].isna().all():
        return {"best_verdict": "missing", "worst_verdict": "missing"}
    row: dict[str, Any] = {}
    for which, index in (("best", deltas["absolute_delta"].idxmax()), ("worst", deltas["absolute_delta"].idxmin())):
        extreme: Any = deltas.loc[cast(Any, index)]
        row[f"{which}_delta"] = extreme["absolute_delta"]
        if "skip_ratio" in deltas:
            row[f"{which}_instance"] = instance_label(extreme, grid_of(deltas))
        row |= {f"{which}_{name}": extreme.get(name) for name in ("ci_low", "ci_high", "verdict")}
    if "standard_error" in deltas:
        row["best_by_chance"] = best_by_chance(deltas["standard_error"])
    return row


def table2(deltas: pd.DataFrame) -> pd.DataFrame:
    """Return Table 2: the best and the worst accuracy delta of each cell, and their mean per model.

    The paper prints the magnitude of a mean, cut off after three decimals: `best_paper_form` and `worst_paper_form`
    are beside the mean itself. `best_by_chance` is the best delta to expect if no instance differed from the baseline;
    the worst to expect is its negative. A model has no mean where one of its datasets is missing.

    Args:
        deltas: a row per instance with the columns model, dataset, absolute_delta and, where they are known,
            skip_ratio, mitigation, ci_low, ci_high, verdict and standard_error.
    """
    rows: list[dict[str, Any]] = []
    for model, model_deltas in deltas.groupby("model", sort=False):
        cells = [
            {"model": model, "dataset": dataset} | best_and_worst(cell_deltas)
            for dataset, cell_deltas in model_deltas.groupby("dataset", sort=False)
        ]
        mean: dict[str, Any] = {"model": model, "dataset": MEAN}
        if all("best_delta" in cell for cell in cells):
            for which in ("best", "worst"):
                mean[f"{which}_delta"] = float(np.mean([cell[f"{which}_delta"] for cell in cells]))
                mean[f"{which}_paper_form"] = round_toward_zero(mean[f"{which}_delta"])
        rows += [*cells, mean]
    return pd.DataFrame(rows).reindex(columns=TABLE_2)


def strategy_counts(deltas: pd.DataFrame) -> pd.DataFrame:
    """Return in how many cells each mitigation has the best instance, the worst, or neither (`neutral`).

    All mitigations that share the best or the worst delta of a cell count. `..._by_chance` is the expected count if
    all instances were alike, and `..._p` the binomial p of a count at least as far from it.

    Args:
        deltas: columns model, dataset, mitigation and absolute_delta, one row per instance.
    """
    present = deltas.dropna(subset="absolute_delta")
    holders = []  # per cell: the mitigations that have the best and the worst instance
    for _, cell in present.groupby(CELL, sort=False):
        delta = cell["absolute_delta"]
        holders.append((set(cell["mitigation"][delta == delta.max()]), set(cell["mitigation"][delta == delta.min()])))
    num_cells, size = len(holders), len(deltas) / deltas.groupby(CELL).ngroups
    rows = []
    for mitigation in deltas["mitigation"].unique():
        held = {
            "best": sum(mitigation in best for best, _ in holders),
            "worst": sum(mitigation in worst for _, worst in holders),
            "neutral": sum(mitigation not in best | worst for best, worst in holders),
        }
        share = (deltas["mitigation"] == mitigation).mean()
        others = size - share * size
        # The best and the worst are two different instances, both drawn from the other mitigations.
        neutral = others * (others - 1) / (size * (size - 1)) if size > 1 else 0.0
        row: dict[str, Any] = {"mitigation": mitigation, "cells": num_cells}
        for which, chance in (("best", share), ("worst", share), ("neutral", neutral)):
            row[which] = held[which]
            row[f"{which}_by_chance"] = num_cells * chance
            row[f"{which}_p"] = stats.binomtest(held[which], num_cells, chance).pvalue if num_cells else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def stage_products(problem_scores: pd.DataFrame, model: str, dataset: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (name, problem scores) of a cell's model before SFT, after it, and after training without skipping."""
    scores = problem_scores[problem_scores["model"] == model]
    in_cell = scores[scores["dataset"] == dataset]
    yield "pretrained", scores[scores["product"] == "pretrained"]  # one model for all datasets
    yield "sft", in_cell[in_cell["product"] == "sft"]
    yield "train (baseline)", in_cell[(in_cell["product"] == "train") & (in_cell["skip_ratio"] == 0)]


def stages_table(sources: Sources) -> pd.DataFrame:
    """Return the accuracy before, between and after the two stages: pretrained, sft, and the baseline of train.

    Intervals cover problems alone, for the mean over the seeds' models; `interval` is half their width.
    """
    grid, confidence = sources.config["grid"], sources.config["analysis"]["confidence"]
    rows = []
    for model, dataset in product(grid["model"], grid["dataset"]):
        own_checkpoint = sources.config["models"][model].get("sft_checkpoint")
        for name, scores in stage_products(sources.problem_scores, model, dataset):
            if name == "sft" and sources.config["sft"]["num_train_epochs"] == 0 and not own_checkpoint:
                continue
            row: dict[str, Any] = {"model": model, "dataset": dataset, "product": name}
            if scores.empty:
                rows.append(row | {"seeds": 0})
                continue
            scored = scores.assign(score=scores["num_correct"] / scores["samples"])
            per_problem = scored.groupby(["benchmark", "problem_id"])["score"].mean()
            benchmarks = per_problem.index.get_level_values("benchmark").to_numpy(str)
            clusters = cluster_codes(problems_of(scores))
            low, high = problem_interval(per_problem.to_numpy(), benchmarks, confidence, clusters=clusters)
            accuracy = per_problem.groupby("benchmark").mean().mean()
            row |= {"accuracy": accuracy, "interval": (high - low) / 2, "ci_low": low, "ci_high": high}
            rows.append(row | {"seeds": max(1, scores["seed"].nunique())})
    columns = [*CELL, "product", "accuracy", "interval", "ci_low", "ci_high", "seeds"]
    return pd.DataFrame(rows).reindex(columns=columns)


ANSWERING = {"sft": "before training", "baseline": "baseline", "instance": "instance"}


def answers_table(sources: Sources) -> pd.DataFrame:
    """Return twenty problems, and what the model before training, the baseline and one instance of a cell answer."""
    given = sources.details.sampled_answers
    columns = [*CELL, "benchmark", "problem", "answer"]
    judged = [column for name in ANSWERING.values() for column in (name, f"{name} is right")]
    table = given.rename(
        columns={f"{name}_correct": f"{shown} is right" for name, shown in ANSWERING.items()} | ANSWERING
    ).reindex(columns=[*columns, *judged])
    right = [column for column in judged if column.endswith("is right")]
    return table.assign(**{column: table[column].map({True: "yes", False: "no"}) for column in right})


def efficiency_table(
    deltas: pd.DataFrame, per_run: pd.DataFrame, measured: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return what each instance gains in speed, the largest possible gain, and the accuracy delta that it costs.

    `bound` is Property 1, N / (N - k); `bound_with_lm_head` counts the output projection too, which every token
    needs; `sampling_speed_up` is the ratio of sampled tokens per second to those without skipping, as `speed_source`
    says: measured alone, or else seen during training, as `sampling_speed_up_in_training` always is.

    Args:
        deltas: the table of deltas.
        per_run: a row per training run.
        measured: the table of the measured speed, or None where the speed was not measured for every model.
    """
    alone = None if measured is None else measured.set_index(["model", "num_skipped"])
    sizes = per_run.groupby("model")[["num_layers", "layer_parameters", "lm_head_parameters"]].first()
    by_metric = {metric: rows.set_index([*CELL, *INSTANCE]) for metric, rows in deltas.groupby("metric")}
    rows = []
    for accuracy in deltas[deltas["metric"] == "accuracy"].to_dict("records"):
        key = tuple(accuracy[axis] for axis in (*CELL, *INSTANCE))
        row: dict[str, Any] = {name: accuracy[name] for name in (*CELL, *INSTANCE, "num_skipped", "seeds")}
        for metric in ("token_speed_tok_s", "train_runtime_s"):
            delta: Any = by_metric[metric].loc[key]
            row |= {metric: delta["instance"], f"{metric}_relative_delta": delta["relative_delta"]}
        speed: Any = by_metric["generated_tok_s"].loc[key]
        row["sampling_speed_up_in_training"] = row["sampling_speed_up"] = 1 + speed["relative_delta"]
        row["speed_up_ci_low"], row["speed_up_ci_high"] = 1 + speed["relative_ci_low"], 1 + speed["relative_ci_high"]
        row["speed_source"] = IN_TRAINING
        if alone is not None:
            found: Any = alone.loc[(accuracy["model"], accuracy["num_skipped"])]
            row |= {"sampling_speed_up": found["speed_up"], "speed_source": ALONE}
            row |= {"speed_up_ci_low": found["ci_low"], "speed_up_ci_high": found["ci_high"]}
        row |= {"bound": math.nan, "bound_with_lm_head": math.nan}
        if accuracy["model"] in sizes.index:  # otherwise no run of the model has recorded its sizes
            size: Any = sizes.loc[accuracy["model"]].astype(float)
            row["bound"], row["bound_with_lm_head"] = bounds(
                size["num_layers"], accuracy["num_skipped"], size["layer_parameters"], size["lm_head_parameters"]
            )
        row |= {"accuracy_delta": accuracy["absolute_delta"], "verdict": accuracy["verdict"]}
        rows.append(row)
    return pd.DataFrame(rows)


def provenance_table(provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Return the code, the packages and the hardware of the runs, one fact per row."""
    rows = [("commit", ", ".join(provenance["git_commits"]) + (" (changed)" if provenance["git_dirty"] else ""))]
    rows += [("Python", version) for version in provenance["python"]]
    rows += [(name, version) for packages in provenance["packages"] for name, version in packages.items()]
    for hardware in provenance["hardware"]:
        devices = ", ".join(hardware["gpus"]) or "no GPU"
        rows.append(("hardware", f"{hardware['machine']}, {hardware['cpu_count']} CPU cores, {devices}"))
    rows += [("first run started", provenance["first_started"]), ("last run finished", provenance["last_finished"])]
    rows += [("missing", path) for path in provenance["missing"]]
    plainer_samplers = provenance.get("plainer_samplers", {})  # not in reports of earlier versions
    rows += [("another sampler", f"{path}: {sampler}") for path, sampler in plainer_samplers.items()]
    return pd.DataFrame(rows, columns=["what", "value"])
