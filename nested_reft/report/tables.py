"""The tables of a report, each a pure function of its sources."""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from nested_reft.config.sections import Decontamination, Evaluation, Grid, Nesting, Prompt, Sft, Training
from nested_reft.nesting import num_skipped
from nested_reft.report.sources import CELL, INSTANCE, Sources
from nested_reft.report.statistics import best_by_chance, problem_interval


def table1(shapes: Mapping[str, Mapping[str, int]], skip_ratios: list[float]) -> pd.DataFrame:
    """Return Table 1: layers N, width W, and the layers skipped at each ratio.

    Args:
        shapes: model -> what `prepare model` noted: `num_layers` and `width`.
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
    """Return the magnitude cut off, not rounded, after so many decimals, as the paper prints it."""
    return math.floor(round(abs(value) * 10**decimals, 6)) / 10**decimals


MEAN = "magnitude of the mean"
EXTREME = ["instance", "delta", "ci_low", "ci_high", "verdict"]
TABLE_2 = ["source", *CELL, *(f"{which}_{what}" for which in ("best", "worst") for what in EXTREME), "best_by_chance"]


def table2(cells: pd.DataFrame, source: str = "this study") -> pd.DataFrame:
    """Return Table 2: the best and the worst accuracy delta of each (model, dataset), and the magnitude of their mean.

    `best_by_chance` is what the best would be on average if no instance differed from the baseline;
    the worst would be its negative. The mean over datasets is left out where a dataset is missing.

    Args:
        cells: columns model, dataset, absolute_delta and, where they are known, skip_ratio, mitigation,
            ci_low, ci_high, verdict and standard_error; one row per instance.
        source: whose numbers they are.
    """
    rows: list[dict[str, Any]] = []
    for model, of_model in cells.groupby("model", sort=False):
        extremes = []
        for dataset, cell in of_model.groupby("dataset", sort=False):
            row: dict[str, Any] = {"source": source, "model": model, "dataset": dataset}
            delta = cell["absolute_delta"]
            if delta.isna().all():
                rows.append(row | {"best_verdict": "missing", "worst_verdict": "missing"})
                extremes.append((math.nan, math.nan))
                continue
            for which, index in (("best", delta.idxmax()), ("worst", delta.idxmin())):
                extreme: Any = cell.loc[cast(Any, index)]
                row[f"{which}_delta"] = extreme["absolute_delta"]
                if "skip_ratio" in cell:
                    row[f"{which}_instance"] = f"{100 * extreme['skip_ratio']:g}% {extreme['mitigation']}"
                row |= {f"{which}_{name}": extreme.get(name) for name in ("ci_low", "ci_high", "verdict")}
            if "standard_error" in cell:
                row["best_by_chance"] = best_by_chance(cell["standard_error"])
            extremes.append((row["best_delta"], row["worst_delta"]))
            rows.append(row)
        best, worst = np.mean(extremes, axis=0)
        row = {"source": source, "model": model, "dataset": MEAN}
        if not math.isnan(best):
            row |= {"best_delta": round_toward_zero(best), "worst_delta": round_toward_zero(worst)}
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=TABLE_2)


def strategy_counts(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how often a mitigation holds the best or the worst instance of a (model, dataset), or neither.

    Mitigations that share the best or the worst delta all count. Beside each count stands what chance
    would give if all instances were alike, and the p of a count at least as far from it (binomial).

    Args:
        cells: columns model, dataset, mitigation and absolute_delta, one row per instance.
    """
    mitigations = list(cells["mitigation"].unique())
    present = cells.dropna(subset="absolute_delta")
    num_cells = present.groupby(CELL).ngroups
    rows = []
    for mitigation in mitigations:
        held = {"best": 0, "worst": 0, "neutral": 0}
        for _, cell in present.groupby(CELL, sort=False):
            delta = cell["absolute_delta"]
            is_best = mitigation in set(cell.loc[delta == delta.max(), "mitigation"])
            is_worst = mitigation in set(cell.loc[delta == delta.min(), "mitigation"])
            held["best"] += is_best
            held["worst"] += is_worst
            held["neutral"] += not (is_best or is_worst)
        share = (cells["mitigation"] == mitigation).mean()
        size = len(cells) / cells.groupby(CELL).ngroups
        own = share * size
        neutral = (size - own) * (size - own - 1) / (size * (size - 1)) if size > 1 else 0.0
        row: dict[str, Any] = {"mitigation": mitigation, "cells": num_cells}
        for which, chance in (("best", share), ("worst", share), ("neutral", neutral)):
            row[which] = held[which]
            row[f"{which}_by_chance"] = num_cells * chance
            row[f"{which}_p"] = stats.binomtest(held[which], num_cells, chance).pvalue if num_cells else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def stages_table(sources: Sources) -> pd.DataFrame:
    """Return the accuracy before, between and after the two stages: pretrained, SFT, ReFT baseline.

    Intervals are over problems alone, for the mean over the seeds' models; `interval` is half their width.
    """
    confidence = sources.config["analysis"]["confidence"]
    verdicts = sources.verdicts
    rows = []
    for model in sources.config["grid"]["model"]:
        for dataset in sources.config["grid"]["dataset"]:
            here = verdicts["dataset"] == dataset
            for stage, chosen in (
                ("pretrained", verdicts["product"] == "pretrained"),
                ("SFT", here & (verdicts["product"] == "sft")),
                ("ReFT baseline", here & (verdicts["product"] == "train") & (verdicts["skip_ratio"] == 0)),
            ):
                row: dict[str, Any] = {"model": model, "dataset": dataset, "stage": stage}
                of_stage = verdicts[chosen & (verdicts["model"] == model)]
                if of_stage.empty:
                    rows.append(row | {"seeds": 0})
                    continue
                scored = of_stage.assign(score=of_stage["num_correct"] / of_stage["samples"])
                by_problem = scored.groupby(["benchmark", "problem_id"])["score"].mean()
                benchmarks = by_problem.index.get_level_values("benchmark").to_numpy(str)
                low, high = problem_interval(by_problem.to_numpy(), benchmarks, confidence)
                accuracy = by_problem.groupby("benchmark").mean().mean()
                row |= {"accuracy": accuracy, "interval": (high - low) / 2, "ci_low": low, "ci_high": high}
                rows.append(row | {"seeds": max(1, of_stage["seed"].nunique())})
    columns = [*CELL, "stage", "accuracy", "interval", "ci_low", "ci_high", "seeds"]
    return pd.DataFrame(rows).reindex(columns=columns)


def efficiency_table(deltas: pd.DataFrame, per_run: pd.DataFrame) -> pd.DataFrame:
    """Return what each instance gains in speed, what it could gain at most, and what it costs in accuracy.

    `bound` is Property 1, N / (N - k); `bound_with_lm_head` counts the output projection, which every token
    needs too; `sampling_speed_up` is the measured ratio of generated tokens per second to the baseline's.
    """
    shapes = per_run.groupby("model")[["num_layers", "layer_parameters", "lm_head_parameters"]].first()
    by_metric = {metric: rows.set_index([*CELL, *INSTANCE]) for metric, rows in deltas.groupby("metric")}
    rows = []
    for instance in deltas[deltas["metric"] == "accuracy"].to_dict("records"):
        key = tuple(instance[axis] for axis in (*CELL, *INSTANCE))
        told: dict[Any, Any] = {metric: of_metric.loc[key] for metric, of_metric in by_metric.items()}
        row: dict[str, Any] = {name: instance[name] for name in (*CELL, *INSTANCE, "num_skipped", "seeds")}
        for metric in ("token_speed_tok_s", "train_runtime_s"):
            row[metric] = told[metric]["instance"]
            row[f"{metric}_relative_delta"] = told[metric]["relative_delta"]
        speed = told["generated_tok_s"]
        row["sampling_speed_up"] = 1 + speed["relative_delta"]
        row["speed_up_ci_low"], row["speed_up_ci_high"] = 1 + speed["relative_ci_low"], 1 + speed["relative_ci_high"]
        bound, with_lm_head = math.nan, math.nan
        if instance["model"] in shapes.index:
            shape = shapes.loc[instance["model"]].astype(float)
            left = shape["num_layers"] - instance["num_skipped"]
            bound = shape["num_layers"] / left
            head = shape["lm_head_parameters"] / shape["layer_parameters"]
            with_lm_head = (shape["num_layers"] + head) / (left + head)
        row |= {"bound": bound, "bound_with_lm_head": with_lm_head}
        row |= {"accuracy_delta": instance["absolute_delta"], "verdict": instance["verdict"]}
        rows.append(row)
    return pd.DataFrame(rows)


def config_table(config: Mapping[str, Any]) -> pd.DataFrame:
    """Return every key in which the study differs from the paper's values (`config/README.md` says whose they are)."""
    paper: dict[str, dict[str, Any]] = {
        "grid": {name: field.default for name, field in Grid.model_fields.items() if not field.is_required()},
        "decontamination": Decontamination().model_dump(),
        "prompt": Prompt().model_dump(),
        "nesting": Nesting().model_dump(),
        "sft": Sft().model_dump(),
        "training": Training().model_dump(),
        "evaluation": Evaluation().model_dump(),
    }
    rows = [
        {"key": f"{section}.{name}", "paper": json.dumps(value), "study": json.dumps(config[section][name])}
        for section, values in paper.items()
        for name, value in values.items()
        if config[section].get(name, value) != value
    ]
    return pd.DataFrame(rows, columns=["key", "paper", "study"])


def provenance_table(provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Return what the runs were made with, one fact per row."""
    rows = [("commit", ", ".join(provenance["git_commits"]) + (" (changed)" if provenance["git_dirty"] else ""))]
    rows += [("Python", version) for version in provenance["python"]]
    rows += [(name, version) for packages in provenance["packages"] for name, version in packages.items()]
    for hardware in provenance["hardware"]:
        devices = ", ".join(hardware["gpus"]) or "no GPU"
        rows.append(("hardware", f"{hardware['machine']}, {hardware['cpu_count']} CPU cores, {devices}"))
    rows += [("first run started", provenance["first_started"]), ("last run finished", provenance["last_finished"])]
    rows += [("missing", path) for path in provenance.get("missing", [])]
    return pd.DataFrame(rows, columns=["what", "value"])
