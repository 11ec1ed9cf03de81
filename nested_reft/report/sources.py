"""The five source files of a report, collected from the files of the stages."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nested_reft.config.layout import products
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.records.files import read_json, read_rows, write_json
from nested_reft.report.statistics import effective_n, wilson_interval

CELL = ["model", "dataset"]
INSTANCE = ["skip_ratio", "mitigation"]
RUN = [*CELL, *INSTANCE, "seed"]
PHASES = {"generate_s": "generate", "score_s": "score", "fwd_bwd_s": "forward, backward", "optimizer_s": "optimizer"}
# one number per run each, beside the accuracy; for the run time less is more
SPEEDS = ["token_speed_tok_s", "generated_tok_s", "train_runtime_s"]
FACTS = ["num_layers", "num_skipped", "layer_parameters", "lm_head_parameters"]
OFF_POLICY = ["sampling/kl", "sampling/acceptance_rate", "sampling/ess"]


class Sources(NamedTuple):
    """All that a report is made of."""

    results: pd.DataFrame  # a row per model evaluated and benchmark
    verdicts: pd.DataFrame  # a row per model evaluated and problem
    steps: pd.DataFrame  # a row per run and step
    config: dict[str, Any]
    provenance: dict[str, Any]


def evaluated(folder: Path, confidence: float) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Return a row per benchmark of one evaluated model, with Wilson's intervals, and a row per problem."""
    problems, metrics = problem_scores(pd.read_parquet(folder / "records.parquet")), read_json(folder / "metrics.json")
    rows = []
    for benchmark, of_benchmark in problems.groupby("benchmark", sort=False):
        scores = (of_benchmark["num_correct"] / of_benchmark["samples"]).to_numpy(float)
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
        UserError: if no trained model of the study was evaluated.
    """
    rows: list[dict[str, Any]] = []
    verdicts, curves, missing, records = [], [], [], []
    for path, product in products(study):
        try:
            told: dict[str, Any] = {}
            if product["product"] == "train":
                told, steps = trained(results / path)
                records.append(read_json(results / path / "run.json"))
                curves.append(steps.assign(**{axis: product[axis] for axis in RUN}))
            of_benchmarks, problems = evaluated(results / "evaluate" / path, study.analysis.confidence)
        except FileNotFoundError:
            missing.append(path)
            continue
        rows += [product | told | row for row in of_benchmarks]
        verdicts.append(problems.assign(**{axis: product.get(axis) for axis in ["product", *RUN]}))
    if not any(row["product"] == "train" for row in rows):
        raise UserError(
            f"{results} holds no evaluated run of study {study.study!r}; run it first, or correct --results"
        )
    order = ["product", *RUN, *FACTS, "benchmark", "n"]
    order += ["accuracy", "ci_low", "ci_high", "truncated", "mean_length", "mean_reward", *SPEEDS, *PHASES]
    table = pd.DataFrame(rows)
    order += sorted((name for name in map(str, table) if name.startswith("pass_at_")), key=lambda name: int(name[8:]))
    whole = ("seed", *FACTS)
    problems = pd.concat(verdicts, ignore_index=True)[
        ["product", *RUN, "benchmark", "problem_id", "num_correct", "samples"]
    ]
    return Sources(
        table.reindex(columns=order).astype(dict.fromkeys(whole, "Int64")),
        problems.astype({"seed": "Int64", "skip_ratio": float, "num_correct": "int32", "samples": "int32"}),
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
    names = dict.fromkeys(("product", "model", "dataset", "mitigation", "benchmark"), "category")
    sources.verdicts.astype(names).to_parquet(folder / "problem_scores.parquet", index=False, compression="zstd")
    write_json(folder / "config.json", sources.config)
    write_json(folder / "provenance.json", sources.provenance)


def read_sources(folder: Path) -> Sources:
    """Read what `write_sources` wrote.

    Raises:
        UserError: if one of the files is not there.
    """
    names = ("results.csv", "problem_scores.parquet", "steps.csv", "config.json", "provenance.json")
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}, of which a report is rebuilt; give the folder of a whole report")
    verdicts = pd.read_parquet(folder / "problem_scores.parquet")
    plain = dict.fromkeys(("product", "model", "dataset", "mitigation", "benchmark"), object)
    return Sources(
        pd.read_csv(folder / "results.csv"),
        verdicts.astype(plain),
        pd.read_csv(folder / "steps.csv"),
        read_json(folder / "config.json"),
        read_json(folder / "provenance.json"),
    )


def problem_scores(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row per problem: benchmark, problem_id, `num_correct` (of its samples) and `samples`."""
    grouped = records.groupby(["benchmark", "problem_id"], sort=False)["correct"]
    return grouped.agg(num_correct="sum", samples="size").reset_index()
