"""From the files of the stages to the long table, the tables of the paper and the figures.

Pandas only: neither torch nor TRL is imported. `results.csv` is the long table, one row per run and
benchmark; everything else derives from it. Columns that end in `_s` are timings: two runs with the
same seed agree in all others, byte for byte.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from nested_reft import plots
from nested_reft.config import Run, Study, runs
from nested_reft.nesting import num_skipped
from nested_reft.tracking import read_json, read_rows, write_json

CELL = ["model", "dataset"]
INSTANCE = ["skip_ratio", "mitigation"]
# metric -> unit; for the last one less is more
METRICS = {"accuracy": "share correct", "token_speed_tok_s": "tokens/s", "train_runtime_s": "s"}
PHASES = {"generate_s": "generate", "score_s": "score", "fwd_bwd_s": "forward, backward", "optimizer_s": "optimizer"}


# ---- reading -----------------------------------------------------------------------------------------


def train_folder(run: Run) -> str:
    """Return the folder of a run below the stage: its path in the grid."""
    return "/".join(f"{axis}~{value}" for axis, value in run)


def evaluated(folder: Path, confidence: float, **cell: Any) -> list[dict[str, Any]]:
    """Return a row per benchmark of one evaluated model, with Wilson intervals."""
    metrics = read_json(folder / "metrics.json")
    rows = []
    for name in metrics:
        if not name.endswith("/pass_at_1") or name.startswith("eval/overall"):
            continue
        benchmark = name.split("/")[1]
        n, accuracy = metrics[f"eval/{benchmark}/n"], metrics[name]
        interval = stats.binomtest(round(n * accuracy), n).proportion_ci(confidence, method="wilson")
        row = {"benchmark": benchmark, "n": n, "accuracy": accuracy, "ci_low": interval.low, "ci_high": interval.high}
        rows.append(cell | row)
    return rows


def long_table(study: Study, results: Path) -> pd.DataFrame:
    """Return one row per model evaluated and benchmark; runs carry their timings in each row."""
    evaluations, confidence = results / "evaluate", study.analysis.confidence
    rows: list[dict[str, Any]] = []
    for model in study.grid.model:
        rows += evaluated(evaluations / f"pretrained/model~{model}", confidence, stage="pretrained", model=model)
        for dataset in study.grid.dataset:
            for seed in study.grid.seed:
                folder = evaluations / f"sft/model~{model}/dataset~{dataset}/seed~{seed}"
                cell = {"model": model, "dataset": dataset, "seed": seed}
                rows += evaluated(folder, confidence, stage="sft", **cell)
    for run in runs(study):
        facts = read_json(results / "train" / train_folder(run) / "run.json")
        totals = read_json(results / "train" / train_folder(run) / "metrics.json")
        cell = run.model_dump() | {"num_layers": facts["num_layers"], "num_skipped": facts["num_skipped"]}
        cell |= {name: totals[name] for name in ("mean_reward", "token_speed_tok_s", "train_runtime_s", *PHASES)}
        rows += evaluated(evaluations / "train" / train_folder(run), confidence, stage="train", **cell)
    order = ["stage", *CELL, *INSTANCE, "seed", "num_layers", "num_skipped", "benchmark", "n", "accuracy"]
    order += ["ci_low", "ci_high", "mean_reward", "token_speed_tok_s", "train_runtime_s", *PHASES]
    whole_numbers = dict.fromkeys(("seed", "num_layers", "num_skipped"), "Int64")
    return pd.DataFrame(rows).reindex(columns=order).astype(whole_numbers)


def step_curves(study: Study, results: Path) -> pd.DataFrame:
    """Return one row per run and step: what the rewards did."""
    rows = []
    for run in runs(study):
        for row in read_rows(results / "train" / train_folder(run) / "metrics.jsonl"):
            rows.append(run.model_dump() | {"step": row["step"], "reward": row["reward"]})
    return pd.DataFrame(rows)


def provenance(study: Study, results: Path) -> dict[str, Any]:
    """Return what the runs of the study were made with: commits, packages, hardware; more than one of each is told."""
    records = [read_json(results / "train" / train_folder(run) / "run.json") for run in runs(study)]
    made_with = [record["provenance"] for record in records]

    def distinct(values: list[Any]) -> list[Any]:
        return [json.loads(text) for text in sorted({json.dumps(value, sort_keys=True) for value in values})]

    return {
        "runs": len(records),
        "git_commits": distinct([made["git_commit"] for made in made_with]),
        "git_dirty": any(made["git_dirty"] for made in made_with),
        "python": distinct([made["python"] for made in made_with]),
        "packages": distinct([made["packages"] for made in made_with]),
        "hardware": distinct([made["hardware"] for made in made_with]),
        "first_started": min(record["started"] for record in records),
        "last_finished": max(record["finished"] for record in records),
    }


# ---- tables ------------------------------------------------------------------------------------------


def overall(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return one row per run: the unweighted mean over the benchmarks, the paper's overall performance.

    `accuracy_half` is half the width of its normal interval from the sampling of problems alone.
    """
    keys = ["stage", *CELL, *INSTANCE, "seed"]
    variance = table["accuracy"] * (1 - table["accuracy"]) / table["n"]
    grouped = table.assign(variance=variance).groupby(keys, dropna=False, sort=False)
    rows = grouped.agg(
        accuracy=("accuracy", "mean"),
        variance=("variance", "sum"),
        benchmarks=("benchmark", "size"),
        num_skipped=("num_skipped", "first"),
        **{name: (name, "first") for name in ("mean_reward", "token_speed_tok_s", "train_runtime_s", *PHASES)},
    ).reset_index()
    z = stats.norm.ppf(0.5 + confidence / 2)
    rows["accuracy_half"] = z * rows["variance"] ** 0.5 / rows["benchmarks"]
    return rows.drop(columns=["variance", "benchmarks"])


def deltas(rows: pd.DataFrame) -> pd.DataFrame:
    """Return absolute and relative deltas to the baseline of each instance, averaged over seeds.

    absolute = metric - baseline's, relative = absolute / baseline's, both within a
    (model, dataset, seed).

    Args:
        rows: the runs among the rows of `overall`.
    """
    keys = [*CELL, "seed"]
    baseline = rows[rows["skip_ratio"] == 0].set_index(keys)
    instances = rows[rows["skip_ratio"] > 0].set_index(keys)
    columns = {}
    for metric in METRICS:
        reference = baseline[metric].reindex(instances.index)
        columns[f"absolute_delta/{metric}"] = instances[metric] - reference
        columns[f"relative_delta/{metric}"] = (instances[metric] - reference) / reference
    table = pd.concat([instances[INSTANCE], pd.DataFrame(columns)], axis=1).reset_index()
    return table.groupby([*CELL, *INSTANCE], sort=False).mean(numeric_only=True).drop(columns="seed").reset_index()


def table1(shapes: dict[str, dict[str, int]], skip_ratios: list[float]) -> pd.DataFrame:
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


def table2(cells: pd.DataFrame) -> pd.DataFrame:
    """Return Table 2: best and worst accuracy delta per model and dataset, and the magnitude of their mean.

    Args:
        cells: columns model, dataset and absolute_delta/accuracy, one row per instance.
    """
    rows = []
    for model, of_model in cells.groupby("model", sort=False):
        grouped = of_model.groupby("dataset", sort=False)["absolute_delta/accuracy"]
        for instance, extremes in (("best", grouped.max()), ("worst", grouped.min())):
            rows.append(
                {"model": model, "instance": instance, **extremes, "mean_magnitude": truncated(extremes.mean())}
            )
    return pd.DataFrame(rows)


def strategy_counts(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how often a mitigation holds the best or the worst instance of a (model, dataset), or neither.

    Mitigations that share the best or the worst delta all count.

    Args:
        cells: columns model, dataset, mitigation and absolute_delta/accuracy, one row per instance.
    """
    mitigations = list(cells["mitigation"].unique())
    counts = pd.DataFrame(0, index=pd.Index(mitigations, name="mitigation"), columns=["best", "worst", "neutral"])
    for _, cell in cells.groupby(CELL, sort=False):
        delta = cell["absolute_delta/accuracy"]
        best, worst = (set(cell.loc[delta == extreme, "mitigation"]) for extreme in (delta.max(), delta.min()))
        for mitigation in mitigations:
            counts.loc[mitigation, "best"] += mitigation in best
            counts.loc[mitigation, "worst"] += mitigation in worst
            counts.loc[mitigation, "neutral"] += mitigation not in best | worst
    return counts.reset_index()


def stages_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy before, between and after the two stages: pretrained, SFT, ReFT baseline."""
    table = []
    for (model, dataset), _ in rows[rows["stage"] == "sft"].groupby(CELL, sort=False):
        of_model = rows[rows["model"] == model]
        baseline = (of_model["dataset"] == dataset) & (of_model["stage"] == "train") & (of_model["skip_ratio"] == 0)
        for stage, chosen in (
            ("pretrained", of_model["stage"] == "pretrained"),
            ("SFT", (of_model["dataset"] == dataset) & (of_model["stage"] == "sft")),
            ("ReFT baseline", baseline),
        ):
            values = of_model[chosen]
            table.append(
                {
                    "model": model,
                    "dataset": dataset,
                    "stage": stage,
                    "accuracy": values["accuracy"].mean(),
                    "interval": (values["accuracy_half"] ** 2).sum() ** 0.5 / len(values),
                }
            )
    return pd.DataFrame(table)


# ---- writing -----------------------------------------------------------------------------------------


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV and as Markdown."""
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    path.with_suffix(".md").write_text(table.to_markdown(index=False, floatfmt=".4f") + "\n")


def report(study: Study, results: Path, out: Path) -> None:
    """Write every table and figure of the study.

    Args:
        study: its configuration.
        results: the folder that the stages wrote into.
        out: the folder of the report.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = long_table(study, results)
    table.to_csv(out / "results.csv", index=False, float_format="%.6g")
    write_json(out / "config.json", study.model_dump(exclude={"tracking", "jobs"}))

    write_json(out / "provenance.json", provenance(study, results))

    rows = overall(table, study.analysis.confidence)
    trained = rows[rows["stage"] == "train"]
    cells = deltas(trained)
    shapes = {model: read_json(results / f"pretrained/model~{model}/model.json") for model in study.grid.model}
    write_table(table1(shapes, study.grid.skip_ratio), out / "table1")
    write_table(table2(cells), out / "table2")
    write_table(strategy_counts(cells), out / "strategy_counts")
    write_table(stages_table(rows), out / "stages")
    cells.to_csv(out / "deltas.csv", index=False, float_format="%.6g")

    for dataset in study.grid.dataset:
        plots.save(plots.dataset_figure(trained[trained["dataset"] == dataset], METRICS), out / f"figure_{dataset}")
    plots.save(plots.time_split(trained, PHASES), out / "time_split")
    steps = step_curves(study, results)
    steps.to_csv(out / "steps.csv", index=False, float_format="%.6g")
    plots.save(plots.reward_curves(steps), out / "reward")
