"""The source files of a report: collected from the files of the stages, written, and read again.

    results.csv             a row per product (evaluated model) and benchmark
    problem_scores.parquet  a row per product and problem
    steps.csv               a row per run and optimizer step
    config.json             the study's configuration
    provenance.json         code, packages and hardware of the runs, and the missing products

The module `details` describes three more.

Every table, figure and caption is a function of these files, so a report can be rebuilt from its folder alone.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nested_reft.config.layout import PRETRAINED, SOURCES, products
from nested_reft.config.study import BASELINE, INSTANCE, RUN, Study
from nested_reft.config.study import instance_label as instance_label
from nested_reft.errors import UserError
from nested_reft.records.files import read_json, read_rows, read_versioned_json, write_json, write_versioned_json
from nested_reft.records.job_logs import last_sentence
from nested_reft.records.lock import is_locked
from nested_reft.report.details import Details, collect_details, read_details, write_details
from nested_reft.report.statistics import effective_n, wilson_interval

CELL = ["model", "dataset"]
# The phases of a training step, in their order: column of seconds -> name in a figure.
PHASES = {"generate_s": "generate", "score_s": "score", "fwd_bwd_s": "forward, backward", "optimizer_s": "optimizer"}
# Metrics with one number per run, beside the accuracy. Lower is better for the run time only.
SPEEDS = ["token_speed_tok_s", "generated_tok_s", "train_runtime_s"]
MODEL_SIZES = ["num_layers", "num_skipped", "layer_parameters", "lm_head_parameters"]
OFF_POLICY = ["sampling/kl", "sampling/acceptance_rate", "sampling/ess"]
# Columns of steps.csv that reports of earlier versions lack.
LATER_STEPS = ["sampling/k3_kl", "entropy", "seconds", "generated_tokens", "skipped_layers"]

RESULTS = ["product", *RUN, *MODEL_SIZES, "benchmark", "n", "accuracy", "ci_low", "ci_high", "truncated"]
RESULTS += ["mean_length", "mean_reward", *SPEEDS, *PHASES]
PROBLEM_SCORES = ["product", *RUN, "benchmark", "problem_id", "num_correct", "samples"]
# Columns of problem_scores.parquet with few distinct texts, which the file stores as categories.
NAME_COLUMNS = ["product", "model", "dataset", "mitigation", "benchmark"]
# Metrics of a benchmark that results.csv copies; `accuracy` is pass@1 already.
COPIED_METRIC = re.compile(r"truncated|mean_length|pass_at_(?!1$)\d+")


class Sources(NamedTuple):
    """Everything that a report is made from."""

    results: pd.DataFrame
    problem_scores: pd.DataFrame
    steps: pd.DataFrame
    config: dict[str, Any]
    provenance: dict[str, Any]
    details: Details


def problem_scores(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row per problem: benchmark, problem_id, `num_correct` (of its samples) and `samples`."""
    grouped = records.groupby(["benchmark", "problem_id"], sort=False)["correct"]
    return grouped.agg(num_correct="sum", samples="size").reset_index()


def read_evaluation(folder: Path, confidence: float) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Return a row per benchmark of one evaluated model, with Wilson's intervals, and a row per problem."""
    problems = problem_scores(pd.read_parquet(folder / "records.parquet"))
    metrics = read_versioned_json(folder / "metrics.json")
    rows = []
    for benchmark, counts in problems.groupby("benchmark", sort=False):
        scores = (counts["num_correct"] / counts["samples"]).to_numpy(float)
        low, high = wilson_interval(scores.mean(), effective_n(scores), confidence)
        row = {"benchmark": benchmark, "n": len(scores), "accuracy": scores.mean(), "ci_low": low, "ci_high": high}
        prefix = f"eval/{benchmark}/"
        named = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        rows.append(row | {name: value for name, value in named.items() if COPIED_METRIC.fullmatch(name)})
    return rows, problems


def read_training(folder: Path) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
    """Return the record of a training run, its columns in results.csv, and a row per step."""
    record, totals = read_versioned_json(folder / "run.json"), read_versioned_json(folder / "metrics.json")
    steps = pd.DataFrame(read_rows(folder / "metrics.jsonl"))
    columns: dict[str, Any] = {name: record.get(name) for name in MODEL_SIZES}
    columns |= {name: totals[name] for name in ("mean_reward", "token_speed_tok_s", "train_runtime_s", *PHASES)}
    # The median, because the first steps of a run are slower than the others.
    columns["generated_tok_s"] = steps["perf/generated_tok_s"].median()
    generated = steps["perf/generated_tok_s"] * steps.get("perf/generate_s", math.nan)
    steps = steps.assign(
        seconds=steps.get("perf/step_s"),
        generated_tokens=generated.round(),
        skipped_layers=[" ".join(map(str, layers)) for layers in steps["nesting/skipped_layers"]],
    )
    return record, columns, steps.reindex(columns=["step", "reward", *OFF_POLICY, *LATER_STEPS])


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
        UserError: if no trained model of the study was evaluated, or if a file has another schema version.
    """
    rows: list[dict[str, Any]] = []
    scores, curves, missing, records = [], [], [], []
    for path, product in products(study):
        try:
            columns: dict[str, Any] = {}
            if product["product"] == "train":
                record, columns, steps = read_training(results / path)
                records.append(record)
                curves.append(steps.assign(**{axis: product[axis] for axis in RUN}))
            benchmark_rows, problems = read_evaluation(results / "evaluate" / path, study.analysis.confidence)
        except FileNotFoundError:
            missing.append(path)
            continue
        rows += [product | columns | row for row in benchmark_rows]
        scores.append(problems.assign(**{axis: product.get(axis) for axis in ["product", *RUN]}))
    if not any(row["product"] == "train" for row in rows):
        raise UserError(
            f"{results} holds no evaluated run of study {study.study!r}; run the study first, or correct --results"
        )
    reasons = {path: missing_reason(path, results, logs) for path in missing} if logs else {}
    failures = {path: reason for path, reason in reasons.items() if reason}
    table = pd.DataFrame(rows)
    pass_at = sorted((name for name in map(str, table) if name.startswith("pass_at_")), key=lambda name: int(name[8:]))
    return Sources(
        table.reindex(columns=[*RESULTS, *pass_at]).astype(dict.fromkeys(("seed", "border", *MODEL_SIZES), "Int64")),
        pd.concat(scores, ignore_index=True)[PROBLEM_SCORES].astype(
            {"seed": "Int64", "border": "Int64", "skip_ratio": float, "num_correct": "int32", "samples": "int32"}
        ),
        pd.concat(curves, ignore_index=True)[[*RUN, "step", "reward", *OFF_POLICY, *LATER_STEPS]],
        study.model_dump(exclude={"tracking", "jobs"}),
        provenance(study, results, records) | {"missing": missing, "failures": failures},
        collect_details(study, results),
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


def write_sources(sources: Sources, folder: Path) -> None:
    """Write the source files of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    sources.results.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    sources.steps.to_csv(folder / "steps.csv", index=False, float_format="%.6g")
    categories = dict.fromkeys(NAME_COLUMNS, "category")
    sources.problem_scores.astype(categories).to_parquet(
        folder / "problem_scores.parquet", index=False, compression="zstd"
    )
    write_json(folder / "config.json", sources.config)
    write_versioned_json(folder / "provenance.json", sources.provenance)
    write_details(sources.details, folder)


def read_sources(folder: Path) -> Sources:
    """Read what `write_sources` wrote.

    Raises:
        UserError: if one of the files is missing, or if the report has another schema version.
    """
    for name in SOURCES:
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}, which a report is rebuilt from; give the folder of a whole report"
            )
    sources = Sources(
        pd.read_csv(folder / "results.csv"),
        pd.read_parquet(folder / "problem_scores.parquet").astype(dict.fromkeys(NAME_COLUMNS, object)),
        pd.read_csv(folder / "steps.csv", dtype={"skipped_layers": str}),
        read_json(folder / "config.json"),
        read_versioned_json(folder / "provenance.json"),
        read_details(folder),
    )
    if "border" not in sources.config["grid"]:
        add_border(sources)
    return sources


def add_border(sources: Sources) -> None:
    """Add the axis `border` to the sources of an older report, whose single border is the key `nesting.border`."""
    border = sources.config["nesting"].pop("border")
    sources.config["grid"]["border"] = [border]
    for table in (sources.results, sources.problem_scores, sources.steps):
        of_skipping = table["skip_ratio"].map({0.0: BASELINE["border"]}).fillna(border)
        table["border"] = of_skipping.where(table["skip_ratio"].notna()).astype("Int64")


def grid_of(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the values of each axis of the instances in a table with a row per instance, run or step."""
    nested = table[table["skip_ratio"] > 0]
    return {axis: list(nested[axis].unique()) for axis in INSTANCE}
