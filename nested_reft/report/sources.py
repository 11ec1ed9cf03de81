"""The source files of a report: collected from the files of the stages, written, and read again.

    results.csv             a row per product (evaluated model) and benchmark
    problem_scores.parquet  a row per product and problem
    steps.csv               a row per run and optimizer step
    config.json             the study's configuration
    provenance.json         code, packages and hardware of the runs, and the missing products

The module `details` describes four more.

Every table, figure and caption is a function of these files, so a report can be rebuilt from its folder alone.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nested_reft.config.layout import SOURCES
from nested_reft.config.sections import Analysis
from nested_reft.config.study import BASELINE, INSTANCE, RUN
from nested_reft.config.study import instance_label as instance_label
from nested_reft.errors import UserError
from nested_reft.records.files import read_json, read_versioned_json, write_json, write_versioned_json
from nested_reft.report.details import Details, read_details, write_details

CELL = ["model", "dataset"]
# The phases of a training step, in their order: column of seconds -> name in a figure.
PHASES = {"generate_s": "generate", "score_s": "score", "fwd_bwd_s": "forward, backward", "optimizer_s": "optimizer"}
# Metrics with one number per run, beside the accuracy.
SPEEDS = ["token_speed_tok_s", "generated_tok_s", "train_runtime_s"]
LOWER_IS_BETTER = ["train_runtime_s"]
MODEL_SIZES = ["num_layers", "num_skipped", "layer_parameters", "lm_head_parameters"]
OFF_POLICY = ["sampling/kl", "sampling/acceptance_rate", "sampling/ess"]
# Columns of steps.csv that reports of earlier versions lack.
LATER_STEPS = ["sampling/k3_kl", "entropy", "seconds", "generated_tokens", "skipped_layers"]

RESULTS = ["product", *RUN, *MODEL_SIZES, "benchmark", "n", "accuracy", "ci_low", "ci_high", "truncated"]
RESULTS += ["mean_length", "mean_reward", *SPEEDS, *PHASES]
PROBLEM_SCORES = ["product", *RUN, "benchmark", "problem_id", "num_correct", "samples"]
# Columns of problem_scores.parquet with few distinct texts, which the file stores as categories.
NAME_COLUMNS = ["product", "model", "dataset", "mitigation", "benchmark", "cluster"]


class Sources(NamedTuple):
    """Everything that a report is made from."""

    results: pd.DataFrame
    problem_scores: pd.DataFrame
    steps: pd.DataFrame
    config: dict[str, Any]
    provenance: dict[str, Any]
    details: Details


def problem_scores(records: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """Return a row per problem: the axes, benchmark, problem_id, `num_correct` (of its samples) and `samples`.

    Problems in clusters also have their `cluster`.

    Args:
        records: a row per completion.
        axes: the columns of the records that distinguish the evaluated models, if there are several.
    """
    grouped = records.groupby([*axes, "benchmark", "problem_id"], sort=False, observed=True)
    scores = grouped["correct"].agg(num_correct="sum", samples="size")
    return (scores.join(grouped["cluster"].first()) if "cluster" in records else scores).reset_index()


def write_sources(sources: Sources, folder: Path) -> None:
    """Write the source files of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    sources.results.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    sources.steps.to_csv(folder / "steps.csv", index=False, float_format="%.6g")
    categories = dict.fromkeys([name for name in NAME_COLUMNS if name in sources.problem_scores], "category")
    sources.problem_scores.astype(categories).to_parquet(
        folder / "problem_scores.parquet", index=False, compression="zstd"
    )
    write_json(folder / "config.json", sources.config)
    write_versioned_json(folder / "provenance.json", sources.provenance)
    write_details(sources.details, folder)


def read_problem_scores(path: Path) -> pd.DataFrame:
    """Return the table of that name, with the names as texts."""
    table = pd.read_parquet(path)
    return table.astype(dict.fromkeys([name for name in NAME_COLUMNS if name in table], object))


def read_sources(folder: Path) -> Sources:
    """Read what `write_sources` wrote.

    Raises:
        UserError: if one of the files is missing, or if the report has another schema version.
    """
    for name in SOURCES:
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}, which a report is rebuilt from; give the folder of a whole report, or the "
                "YAML file of the study"
            )
    sources = Sources(
        pd.read_csv(folder / "results.csv"),
        read_problem_scores(folder / "problem_scores.parquet"),
        pd.read_csv(folder / "steps.csv", dtype={"skipped_layers": str}),
        read_json(folder / "config.json"),
        read_versioned_json(folder / "provenance.json"),
        read_details(folder),
    )
    sources.config["analysis"].setdefault("margin", Analysis().margin)  # reports of earlier versions lack it
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
