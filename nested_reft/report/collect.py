"""Collecting the sources of a report from the files of the stages."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nested_reft.config.layout import PRETRAINED, products
from nested_reft.config.study import RUN, Study
from nested_reft.errors import UserError
from nested_reft.records.files import check_outputs, checksums, read_json, read_rows, read_versioned_json
from nested_reft.records.job_logs import last_sentence
from nested_reft.records.lock import is_locked
from nested_reft.report.clusters import Codes, cluster_codes
from nested_reft.report.details import collect_details
from nested_reft.report.sources import (
    LATER_STEPS,
    MODEL_SIZES,
    OFF_POLICY,
    PHASES,
    PROBLEM_SCORES,
    RESULTS,
    Sources,
    problem_scores,
)
from nested_reft.report.statistics import Floats, accuracy_interval

# Metrics of a benchmark that results.csv copies; `accuracy` is pass@1 already.
COPIED_METRIC = re.compile(r"truncated|mean_length|pass_at_(?!1$)\d+")


# Problems of some benchmarks have a cluster.
VERDICT_COLUMNS = ["benchmark", "problem_id", "correct", "cluster"]


class Evaluation(NamedTuple):
    """One evaluated model."""

    product: dict[str, Any]  # its axes and its columns in results.csv
    verdicts: pa.Table  # a row per completion: the VERDICT_COLUMNS
    metrics: dict[str, Any]  # metrics.json


def read_evaluation(folder: Path, product: dict[str, Any]) -> Evaluation:
    """Return an evaluated model from the folder of its evaluation."""
    check_outputs(folder, checksums(folder, "records.parquet", "metrics.json"))
    # The files are small and many: `pq.read_table` takes four times as long, and threads cost more than they save.
    file = pq.ParquetFile(folder / "records.parquet", read_dictionary=["benchmark"])
    columns = [name for name in VERDICT_COLUMNS if name in file.schema_arrow.names]
    verdicts = file.read(columns, use_threads=False)
    return Evaluation(product, verdicts, read_versioned_json(folder / "metrics.json"))


def all_problem_scores(verdicts: list[pa.Table]) -> pd.DataFrame:
    """Return a row per product and problem, as `problem_scores` does, with the `number` of the product in the list."""
    table = pa.concat_tables(verdicts, promote_options="default").unify_dictionaries().to_pandas()
    table["number"] = np.repeat(np.arange(len(verdicts)), [len(rows) for rows in verdicts])
    return problem_scores(table, "number")


def benchmark_row(
    name: str,
    scores: Floats,
    samples: int,
    metrics: Mapping[str, Any],
    confidence: float,
    clusters: Codes | None = None,
) -> dict[str, Any]:
    """Return the columns of results.csv that describe one evaluated model on one benchmark.

    Args:
        name: the name of the benchmark.
        scores: the share of right answers per problem, (n,).
        samples: completions per problem.
        metrics: the metrics of the evaluation.
        confidence: the confidence level of the interval.
        clusters: the cluster of each problem, (n,), or None if each problem is one of its own.
    """
    low, high = accuracy_interval(scores, samples, confidence, clusters)
    row = {"benchmark": name, "n": len(scores), "accuracy": scores.mean(), "ci_low": low, "ci_high": high}
    prefix = f"eval/{name}/"
    named = {metric.removeprefix(prefix): value for metric, value in metrics.items() if metric.startswith(prefix)}
    return row | {metric: value for metric, value in named.items() if COPIED_METRIC.fullmatch(metric)}


def results_rows(evaluated: Sequence[Evaluation], scores: pd.DataFrame, confidence: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of results.csv: one per evaluated model and benchmark."""
    shares = scores["num_correct"] / scores["samples"]
    groups: Any = shares.groupby([scores["number"], scores["benchmark"]], sort=False, observed=True)
    for (number, benchmark), of_problems in groups:
        product, _, metrics = evaluated[number]
        samples = int(scores["samples"].loc[of_problems.index[0]])
        clusters = cluster_codes(scores.loc[of_problems.index]) if "cluster" in scores else None
        yield product | benchmark_row(benchmark, of_problems.to_numpy(), samples, metrics, confidence, clusters)


def with_axes(scores: pd.DataFrame, products: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the table problem_scores.parquet: the axes of a product take the place of its number."""
    axes = pd.DataFrame([{axis: product.get(axis) for axis in ["product", *RUN]} for product in products])
    columns = [*PROBLEM_SCORES, *(["cluster"] if "cluster" in scores else [])]
    table = scores.astype({"benchmark": object}).join(axes, on="number")[columns]
    return table.astype(
        {"seed": "Int64", "border": "Int64", "skip_ratio": float, "num_correct": "int32", "samples": "int32"}
    )


def plainer_sampler(record: Mapping[str, Any]) -> str | None:
    """Return which sampler a stage used in place of that of its settings, or None if it used that of its settings.

    Args:
        record: the run.json of a training or an evaluation; earlier versions named no sampler in some of them.
    """
    section = {"train": "training", "evaluate": "evaluation"}[record["stage"]]
    wanted = record["settings"].get(section, {}).get("sampler")
    used = record.get("sampler") or wanted
    return None if used == wanted else f"{used} in place of {wanted}"


class TrainingRun(NamedTuple):
    """What a report shows of a training run."""

    record: dict[str, Any]  # run.json
    columns: dict[str, Any]  # in results.csv
    steps: list[dict[str, Any]]  # a row per step
    weight_counts: Floats | None  # sampled tokens per bin of weights; None in runs of earlier versions


def step_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of steps.csv that describe a step, from its row in metrics.jsonl."""
    kept = {name: row.get(name, math.nan) for name in ["step", "reward", *OFF_POLICY, "sampling/k3_kl", "entropy"]}
    generated = row.get("perf/generated_tok_s", math.nan) * row.get("perf/generate_s", math.nan)
    return kept | {
        "seconds": row.get("perf/step_s", math.nan),
        "generated_tokens": generated if math.isnan(generated) else round(generated),
        "skipped_layers": " ".join(map(str, row["nesting/skipped_layers"])),
    }


def read_training(folder: Path) -> TrainingRun:
    """Return what a report shows of a training run."""
    check_outputs(folder, checksums(folder, "metrics.json", "metrics.jsonl"))
    record, totals = read_versioned_json(folder / "run.json"), read_versioned_json(folder / "metrics.json")
    rows = read_rows(folder / "metrics.jsonl")
    columns: dict[str, Any] = {name: record.get(name) for name in MODEL_SIZES}
    columns |= {name: totals[name] for name in ("mean_reward", "token_speed_tok_s", "train_runtime_s", *PHASES)}
    # The median, because the first steps of a run are slower than the others.
    columns["generated_tok_s"] = median(row["perf/generated_tok_s"] for row in rows if "perf/generated_tok_s" in row)
    counts = [row["sampling/token_weight_counts"] for row in rows if "sampling/token_weight_counts" in row]
    return TrainingRun(record, columns, [step_row(row) for row in rows], np.sum(counts, axis=0) if counts else None)


def missing_reason(path: str, results: Path, logs: Path) -> str | None:
    """Return why a product is missing, by the job that should make it, or evaluate it; None if no job has started.

    Args:
        path: the path of the product below the results.
        results: the folder that the stages wrote into.
        logs: the folder of the logs of the jobs.
    """
    is_made = (results / path / "metrics.json").exists() or (results / path / "model.json").exists()
    job = f"evaluate/{path}" if is_made else path
    if is_locked(results / job / ".lock"):
        return "the job is running"
    log = logs / f"{job}.log"
    return last_sentence(log) if log.exists() else None


def collect(study: Study, results: Path, logs: Path | None = None) -> Sources:
    """Read the files that the stages wrote. Products without files are listed in `provenance` and left out.

    Args:
        study: the configuration.
        results: the folder that the stages wrote into.
        logs: the folder of the logs of the jobs, which say why a product is missing.

    Raises:
        UserError: if no trained model of the study was evaluated, or if a file is damaged or has another
            schema version.
    """
    runs: list[tuple[dict[str, Any], TrainingRun]] = []
    evaluated: list[Evaluation] = []
    missing = []
    plainer_samplers: dict[str, str] = {}
    for path, product in products(study):
        try:
            columns: dict[str, Any] = {}
            if product["product"] == "train":
                run = read_training(results / path)
                columns = run.columns
                runs.append((product, run))
                if used := plainer_sampler(run.record):
                    plainer_samplers[path] = used
            evaluated.append(read_evaluation(results / "evaluate" / path, product | columns))
            if used := plainer_sampler(read_versioned_json(results / "evaluate" / path / "run.json")):
                plainer_samplers[f"evaluate/{path}"] = used
        except FileNotFoundError:
            missing.append(path)
    if not any(product["product"] == "train" for product, _, _ in evaluated):
        raise UserError(
            f"{results} holds no evaluated run of study {study.study!r}; run the study first, or correct --results"
        )
    reasons = {path: missing_reason(path, results, logs) for path in missing} if logs else {}
    failures = {path: reason for path, reason in reasons.items() if reason}
    scores = all_problem_scores([evaluation.verdicts for evaluation in evaluated])
    table = pd.DataFrame(results_rows(evaluated, scores, study.analysis.confidence))
    pass_at = sorted((name for name in map(str, table) if name.startswith("pass_at_")), key=lambda name: int(name[8:]))
    return Sources(
        table.reindex(columns=[*RESULTS, *pass_at]).astype(dict.fromkeys(("seed", "border", *MODEL_SIZES), "Int64")),
        with_axes(scores, [evaluation.product for evaluation in evaluated]),
        pd.DataFrame(
            [{axis: product[axis] for axis in RUN} | row for product, run in runs for row in run.steps],
            columns=[*RUN, "step", "reward", *OFF_POLICY, *LATER_STEPS],
        ),
        study.model_dump(exclude={"tracking", "jobs"}),
        provenance(study, results, [run.record for _, run in runs])
        | {"missing": missing, "failures": failures, "plainer_samplers": plainer_samplers},
        collect_details(study, results, [(product, run.weight_counts) for product, run in runs]),
    )


def provenance(study: Study, results: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shapes of the models, and each commit, package set and machine that the runs were made with."""
    made_with = [record["provenance"] for record in records]

    def distinct(name: str) -> list[Any]:
        return [json.loads(text) for text in sorted({json.dumps(made[name], sort_keys=True) for made in made_with})]

    notes = {model: results / PRETRAINED.format(model=model) / "model.json" for model in study.grid.model}
    shapes = {model: read_json(note) for model, note in notes.items() if note.exists()}
    return {
        "models": {model: {name: shape[name] for name in ("num_layers", "width")} for model, shape in shapes.items()},
        "runs": len(records),
        "git_commits": distinct("git_commit"),
        "git_dirty": any(made["git_dirty"] for made in made_with),
        "python": distinct("python"),
        "packages": distinct("packages"),
        "hardware": distinct("hardware"),
        "first_started": min((record["started"] for record in records), default=None),
        "last_finished": max((record["finished"] for record in records), default=None),
    }
