"""From the files of the stages to the tables and figures of a study.

Two steps, so that the report folder alone can rebuild itself: `collect` brings what the stages wrote
into five source files (`results.csv`, `verdicts.parquet`, `steps.csv`, `config.json`,
`provenance.json`), and `rebuild` makes every table, figure and caption from those, and from nothing
else. Neither torch nor TRL is imported. In `results.csv`, a row per model evaluated and benchmark,
columns that end in `_s` are timings: two runs with the same seed agree in all others, byte for byte.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from nested_reft.config.sections import (
    ConfigError,
    Decontamination,
    Evaluation,
    Grid,
    Nesting,
    Prompt,
    Run,
    Sft,
    Study,
    Training,
    runs,
)
from nested_reft.nesting import num_skipped
from nested_reft.records.mlflow_mirror import read_json, read_rows, write_json
from nested_reft.report import captions
from nested_reft.report import figures as plots
from nested_reft.report.statistics import (
    Delta,
    Floats,
    accuracy_deltas,
    best_by_chance,
    effective_n,
    holm,
    mcnemar_test,
    metric_deltas,
    problem_interval,
    wilson_interval,
)
from nested_reft.stages.evaluate import problem_scores

CELL = ["model", "dataset"]
INSTANCE = ["skip_ratio", "mitigation"]
RUN = [*CELL, *INSTANCE, "seed"]
PHASES = {"generate_s": "generate", "score_s": "score", "fwd_bwd_s": "forward, backward", "optimizer_s": "optimizer"}
# one number per run each, beside the accuracy; for the run time less is more
SPEEDS = ["token_speed_tok_s", "generated_tok_s", "train_runtime_s"]
FACTS = ["num_layers", "num_skipped", "layer_parameters", "lm_head_parameters"]
OFF_POLICY = ["sampling/kl", "sampling/acceptance_rate", "sampling/ess"]

# Table 2 of the paper, its minus signs restored: per model and dataset the best and the worst delta.
PAPER_TABLE_2 = {
    "Qwen2.5-Math-1.5B-Instruct": {"SVAMP": (0.008, -0.016), "GSM8K": (0.015, -0.006), "Math12k": (0.026, -0.005)},
    "Qwen2.5-Math-7B-Instruct": {"SVAMP": (0.022, -0.070), "GSM8K": (0.010, -0.017), "Math12k": (-0.003, -0.022)},
}


class Sources(NamedTuple):
    """All that a report is made of."""

    results: pd.DataFrame  # a row per model evaluated and benchmark
    verdicts: pd.DataFrame  # a row per model evaluated and problem
    steps: pd.DataFrame  # a row per run and step
    config: dict[str, Any]
    provenance: dict[str, Any]


# ---- from the stages to the sources ------------------------------------------------------------------


def train_folder(run: Run) -> str:
    """Return the folder of a run below the stage: its path in the grid."""
    return "/".join(f"{axis}~{value}" for axis, value in run)


def products(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, cell) of every model that the study evaluates: pretrained, warmed up, trained."""
    for model in study.grid.model:
        yield f"pretrained/model~{model}", {"stage": "pretrained", "model": model}
        for dataset in study.grid.dataset:
            for seed in study.grid.seed:
                path = f"sft/model~{model}/dataset~{dataset}/seed~{seed}"
                yield path, {"stage": "sft", "model": model, "dataset": dataset, "seed": seed}
    for run in runs(study):
        yield f"train/{train_folder(run)}", {"stage": "train"} | run.model_dump()


def evaluated(folder: Path, confidence: float) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Return a row per benchmark of one evaluated model, with Wilson's intervals, and a row per problem."""
    problems, metrics = problem_scores(pd.read_parquet(folder / "records.parquet")), read_json(folder / "metrics.json")
    rows = []
    for benchmark, of_benchmark in problems.groupby("benchmark", sort=False):
        scores = (of_benchmark["correct"] / of_benchmark["samples"]).to_numpy(float)
        low, high = wilson_interval(scores.mean(), effective_n(scores), confidence)
        row = {"benchmark": benchmark, "n": len(scores), "accuracy": scores.mean(), "ci_low": low, "ci_high": high}
        told = rf"eval/{re.escape(str(benchmark))}/(truncated|mean_length|pass_at_\d+)"
        others = {found[1]: value for name, value in metrics.items() if (found := re.fullmatch(told, name))}
        rows.append(row | {name: value for name, value in others.items() if name != "pass_at_1"})
    return rows, problems


def trained(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return what a training run says of itself, and a row per step."""
    facts, totals = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    steps = pd.DataFrame(read_rows(folder / "metrics.jsonl"))
    told: dict[str, Any] = {name: facts.get(name) for name in FACTS}
    told |= {name: totals[name] for name in ("mean_reward", "token_speed_tok_s", "train_runtime_s", *PHASES)}
    # the median: the first steps of a run are slower than the rest
    told["generated_tok_s"] = steps["perf/generated_tok_s"].median()
    return told, steps.reindex(columns=["step", "reward", *OFF_POLICY])


def collect(study: Study, results: Path) -> Sources:
    """Read what the stages wrote; what is missing is noted in `provenance` and left out.

    Args:
        study: its configuration.
        results: the folder that the stages wrote into.

    Raises:
        ConfigError: if no trained model of the study was evaluated.
    """
    rows: list[dict[str, Any]] = []
    verdicts, curves, missing, records = [], [], [], []
    for path, cell in products(study):
        try:
            told: dict[str, Any] = {}
            if cell["stage"] == "train":
                told, steps = trained(results / path)
                records.append(read_json(results / path / "run.json"))
                curves.append(steps.assign(**{axis: cell[axis] for axis in RUN}))
            of_benchmarks, problems = evaluated(results / "evaluate" / path, study.analysis.confidence)
        except FileNotFoundError:
            missing.append(path)
            continue
        rows += [cell | told | row for row in of_benchmarks]
        verdicts.append(problems.assign(**{axis: cell.get(axis) for axis in ["stage", *RUN]}))
    if not any(row["stage"] == "train" for row in rows):
        raise ConfigError(
            f"{results} holds no evaluated run of study {study.study!r}; run it first, or correct --results"
        )
    order = ["stage", *RUN, *FACTS, "benchmark", "n"]
    order += ["accuracy", "ci_low", "ci_high", "truncated", "mean_length", "mean_reward", *SPEEDS, *PHASES]
    table = pd.DataFrame(rows)
    order += sorted((name for name in map(str, table) if name.startswith("pass_at_")), key=lambda name: int(name[8:]))
    whole = ("seed", *FACTS)
    problems = pd.concat(verdicts, ignore_index=True)[["stage", *RUN, "benchmark", "problem_id", "correct", "samples"]]
    return Sources(
        table.reindex(columns=order).astype(dict.fromkeys(whole, "Int64")),
        problems.astype({"seed": "Int64", "skip_ratio": float, "correct": "int32", "samples": "int32"}),
        pd.concat(curves, ignore_index=True)[[*RUN, "step", "reward", *OFF_POLICY]],
        study.model_dump(exclude={"tracking", "jobs"}),
        provenance(study, results, records) | {"missing": missing},
    )


def provenance(study: Study, results: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the runs were made with: commits, packages, hardware; more than one of each is told."""
    made_with = [record["provenance"] for record in records]

    def distinct(values: list[Any]) -> list[Any]:
        return [json.loads(text) for text in sorted({json.dumps(value, sort_keys=True) for value in values})]

    shapes = {model: read_json(results / f"pretrained/model~{model}/model.json") for model in study.grid.model}
    return {
        "models": {model: {name: shape[name] for name in ("num_layers", "width")} for model, shape in shapes.items()},
        "runs": len(records),
        "git_commits": distinct([made["git_commit"] for made in made_with]),
        "git_dirty": any(made["git_dirty"] for made in made_with),
        "python": distinct([made["python"] for made in made_with]),
        "packages": distinct([made["packages"] for made in made_with]),
        "hardware": distinct([made["hardware"] for made in made_with]),
        "first_started": min((record["started"] for record in records), default=None),
        "last_finished": max((record["finished"] for record in records), default=None),
    }


def write_sources(sources: Sources, folder: Path) -> None:
    """Write the five source files of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    sources.results.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    sources.steps.to_csv(folder / "steps.csv", index=False, float_format="%.6g")
    names = dict.fromkeys(("stage", "model", "dataset", "mitigation", "benchmark"), "category")
    sources.verdicts.astype(names).to_parquet(folder / "verdicts.parquet", index=False, compression="zstd")
    write_json(folder / "config.json", sources.config)
    write_json(folder / "provenance.json", sources.provenance)


def read_sources(folder: Path) -> Sources:
    """Read what `write_sources` wrote.

    Raises:
        ConfigError: if one of the files is not there.
    """
    names = ("results.csv", "verdicts.parquet", "steps.csv", "config.json", "provenance.json")
    for name in names:
        if not (folder / name).exists():
            raise ConfigError(
                f"{folder} has no {name}, of which a report is rebuilt; give the folder of a whole report"
            )
    verdicts = pd.read_parquet(folder / "verdicts.parquet")
    plain = dict.fromkeys(("stage", "model", "dataset", "mitigation", "benchmark"), object)
    return Sources(
        pd.read_csv(folder / "results.csv"),
        verdicts.astype(plain),
        pd.read_csv(folder / "steps.csv"),
        read_json(folder / "config.json"),
        read_json(folder / "provenance.json"),
    )


# ---- tables ------------------------------------------------------------------------------------------


def overall(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model evaluated: the unweighted mean over the benchmarks, the paper's performance."""
    firsts = [*FACTS, "mean_reward", *SPEEDS, *PHASES]
    grouped = results.groupby(["stage", *RUN], dropna=False, sort=False)
    aggregated = grouped.agg(
        accuracy=("accuracy", "mean"), **{name: (name, "first") for name in firsts if name in results}
    )
    return aggregated.reset_index()


def cell_scores(
    verdicts: pd.DataFrame, instances: list[tuple[float, str]], seeds: list[int]
) -> tuple[Floats, npt.NDArray[np.str_]]:
    """Return scores (instances, seeds, n), and the benchmark (n,) of each problem.

    A run that is missing has NaN.

    Args:
        verdicts: of the runs of one (model, dataset).
        instances: (skip ratio, mitigation), the baseline first.
        seeds: of the grid.
    """
    problems = verdicts.drop_duplicates(["benchmark", "problem_id"]).sort_values(["benchmark", "problem_id"])
    wide = verdicts.pivot(
        index=["benchmark", "problem_id"], columns=[*INSTANCE, "seed"], values="correct"
    ).sort_index()
    columns = pd.MultiIndex.from_tuples([(*instance, seed) for instance in instances for seed in seeds])
    samples = problems["samples"].to_numpy(float)
    counts = wide.reindex(columns=columns).to_numpy(float).T  # (instances x seeds, n)
    scores = (counts / samples).reshape(len(instances), len(seeds), -1)
    return scores, problems["benchmark"].to_numpy(str)


def delta_table(sources: Sources) -> pd.DataFrame:
    """Return one row per instance and metric: its delta to the baseline, and how sure that is.

    absolute_delta = metric - baseline's; relative_delta = absolute_delta / baseline's. `p_holm` is adjusted
    over the instances of a (model, dataset) and metric, and `verdict` says `resolved` where it is below
    1 - analysis.confidence. `covers` is what the interval is over. An instance without runs is `missing`.
    """
    grid, confidence = sources.config["grid"], sources.config["analysis"]["confidence"]
    instances = [(0.0, "base"), *((x, name) for x in grid["skip_ratio"] for name in grid["mitigation"])]
    per_run = overall(sources.results)
    per_run = per_run[per_run["stage"] == "train"]
    verdicts = sources.verdicts[sources.verdicts["stage"] == "train"]
    rows = []
    for model in grid["model"]:
        for dataset in grid["dataset"]:
            of_cell = per_run[(per_run["model"] == model) & (per_run["dataset"] == dataset)]
            chosen = verdicts[(verdicts["model"] == model) & (verdicts["dataset"] == dataset)]
            by_metric: dict[str, list[Delta]] = {}
            if len(chosen):
                scores, benchmarks = cell_scores(chosen, instances, grid["seed"])
                by_metric["accuracy"] = accuracy_deltas(scores, benchmarks, confidence)
                for metric in SPEEDS:
                    values = of_cell.set_index([*INSTANCE, "seed"])[metric].astype(float)
                    keys = [(*instance, seed) for instance in instances for seed in grid["seed"]]
                    by_run = values.reindex(pd.MultiIndex.from_tuples(keys)).to_numpy().reshape(len(instances), -1)
                    by_metric[metric] = metric_deltas(by_run, confidence)
            num_layers = sources.provenance["models"][model]["num_layers"]
            for metric in ("accuracy", *SPEEDS):
                deltas = by_metric.get(metric, [Delta()] * (len(instances) - 1))
                adjusted = holm([delta.p for delta in deltas])
                for (skip_ratio, mitigation), delta, p_holm in zip(instances[1:], deltas, adjusted, strict=True):
                    verdict = "resolved" if p_holm < 1 - confidence else "not resolved"
                    covers = {"accuracy": "problems"}.get(metric, "nothing")
                    if not math.isnan(delta.p) and (delta.seeds > 1 or metric != "accuracy"):
                        covers = "seeds, problems" if metric == "accuracy" else "seeds"
                    rows.append(
                        {
                            "model": model,
                            "dataset": dataset,
                            "skip_ratio": skip_ratio,
                            "num_skipped": num_skipped(num_layers, skip_ratio),
                            "mitigation": mitigation,
                            "metric": metric,
                            "seeds": delta.seeds,
                            "covers": covers if delta.seeds else "missing",
                            "baseline": delta.baseline,
                            "instance": delta.instance,
                            "absolute_delta": delta.absolute,
                            "ci_low": delta.ci_low,
                            "ci_high": delta.ci_high,
                            "relative_delta": delta.relative,
                            "relative_ci_low": delta.relative_ci_low,
                            "relative_ci_high": delta.relative_ci_high,
                            "standard_error": delta.standard_error,
                            "p": delta.p,
                            "p_holm": p_holm,
                            "verdict": verdict if delta.seeds else "missing",
                        }
                    )
    return pd.DataFrame(rows)


def mcnemar_table(sources: Sources) -> pd.DataFrame:
    """Return McNemar's exact test of each run against its baseline, per benchmark and over all problems.

    It knows neither the macro average nor seeds; it stands beside the deltas as a check that needs no
    assumption. With several samples per problem there is no such test, and the table is empty.
    """
    keys = [*CELL, "seed", "benchmark", "problem_id"]
    chosen = sources.verdicts[(sources.verdicts["stage"] == "train") & (sources.verdicts["samples"] == 1)]
    baselines = chosen[chosen["skip_ratio"] == 0][[*keys, "correct"]]
    paired = chosen[chosen["skip_ratio"] > 0].merge(baselines, on=keys, suffixes=("", "_baseline"))
    paired = pd.concat([paired, paired.assign(benchmark="all problems")])
    rows = []
    for key, pairs in paired.groupby([*RUN, "benchmark"], sort=False):
        only_instance = int((pairs["correct"] > pairs["correct_baseline"]).sum())
        only_baseline = int((pairs["correct"] < pairs["correct_baseline"]).sum())
        row: dict[str, Any] = dict(zip([*RUN, "benchmark"], key, strict=True))
        row |= {"n": len(pairs), "only_instance": only_instance, "only_baseline": only_baseline}
        rows.append(row | {"p": mcnemar_test(only_instance, only_baseline)})
    return pd.DataFrame(rows, columns=[*RUN, "benchmark", "n", "only_instance", "only_baseline", "p"])


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


def truncated(value: float, decimals: int = 3) -> float:
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
            row |= {"best_delta": truncated(best), "worst_delta": truncated(worst)}
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=TABLE_2)


def paper_table2() -> pd.DataFrame:
    """Return the paper's own Table 2, marked as such: it gives no intervals."""
    cells = pd.DataFrame(
        {"model": model, "dataset": dataset, "absolute_delta": delta}
        for model, datasets in PAPER_TABLE_2.items()
        for dataset, extremes in datasets.items()
        for delta in extremes
    )
    return table2(cells, "the paper (arXiv 2508.10123)")


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
                ("pretrained", verdicts["stage"] == "pretrained"),
                ("SFT", here & (verdicts["stage"] == "sft")),
                ("ReFT baseline", here & (verdicts["stage"] == "train") & (verdicts["skip_ratio"] == 0)),
            ):
                row: dict[str, Any] = {"model": model, "dataset": dataset, "stage": stage}
                of_stage = verdicts[chosen & (verdicts["model"] == model)]
                if of_stage.empty:
                    rows.append(row | {"seeds": 0})
                    continue
                scored = of_stage.assign(score=of_stage["correct"] / of_stage["samples"])
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


# ---- writing -----------------------------------------------------------------------------------------


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, Markdown and LaTeX (with the rules of the package booktabs)."""
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    shown = table.astype(object).where(table.notna(), "")
    path.with_suffix(".md").write_text(shown.to_markdown(index=False, floatfmt=".4f") + "\n")
    path.with_suffix(".tex").write_text(table.to_latex(index=False, escape=True, na_rep="", float_format="%.4f"))


def rebuild(folder: Path, out: Path) -> None:
    """Make every table, figure and caption of a report from the source files in it.

    Args:
        folder: the report that holds `results.csv` and the other sources.
        out: where to write; may be the same.
    """
    sources = read_sources(folder)
    out.mkdir(parents=True, exist_ok=True)
    grid = sources.config["grid"]
    per_run = overall(sources.results)
    per_run = per_run[per_run["stage"] == "train"]
    deltas = delta_table(sources)
    accuracy = deltas[deltas["metric"] == "accuracy"]
    tables = {
        "table1": table1(sources.provenance["models"], grid["skip_ratio"]),
        "table2": pd.concat([table2(accuracy).astype(object), paper_table2().astype(object)], ignore_index=True),
        "strategy_counts": strategy_counts(accuracy),
        "stages": stages_table(sources),
        "deltas": deltas,
        "mcnemar": mcnemar_table(sources),
        "efficiency": efficiency_table(deltas, per_run),
        "config": config_table(sources.config),
        "provenance": provenance_table(sources.provenance),
    }
    for name, table in tables.items():
        write_table(table, out / name)
    for name, text in captions.write_captions(sources.config, sources.provenance, sources.results, tables).items():
        (out / f"{name}.rst").write_text(text)

    for dataset in grid["dataset"]:
        plots.save(plots.dataset_figure(deltas[deltas["dataset"] == dataset]), out / f"figure_{dataset}")
    plots.save(plots.frontier(deltas), out / "frontier")
    plots.save(plots.heat_map(accuracy), out / "heat_map")
    plots.save(plots.speed_up(tables["efficiency"]), out / "speed_up")
    plots.save(plots.time_split(per_run, PHASES), out / "time_split")
    plots.save(plots.off_policy(sources.steps), out / "off_policy")
    plots.save(plots.reward_curves(sources.steps), out / "reward")


def report(study: Study, results: Path, out: Path) -> None:
    """Write the sources, and from them every table and figure of the study.

    Args:
        study: its configuration.
        results: the folder that the stages wrote into.
        out: the folder of the report.
    """
    write_sources(collect(study, results), out)
    rebuild(out, out)
