"""The delta of every instance to its baseline, with intervals and tests."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nested_reft.nesting import num_skipped
from nested_reft.report.sources import CELL, FACTS, INSTANCE, PHASES, RUN, SPEEDS, Sources
from nested_reft.report.statistics import Delta, Floats, accuracy_deltas, holm, mcnemar_test, metric_deltas


def overall(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model evaluated: the unweighted mean over the benchmarks, the paper's performance."""
    firsts = [*FACTS, "mean_reward", *SPEEDS, *PHASES]
    grouped = results.groupby(["product", *RUN], dropna=False, sort=False)
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
        index=["benchmark", "problem_id"], columns=[*INSTANCE, "seed"], values="num_correct"
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
    per_run = per_run[per_run["product"] == "train"]
    verdicts = sources.verdicts[sources.verdicts["product"] == "train"]
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
    chosen = sources.verdicts[(sources.verdicts["product"] == "train") & (sources.verdicts["samples"] == 1)]
    baselines = chosen[chosen["skip_ratio"] == 0][[*keys, "num_correct"]]
    paired = chosen[chosen["skip_ratio"] > 0].merge(baselines, on=keys, suffixes=("", "_baseline"))
    paired = pd.concat([paired, paired.assign(benchmark="all problems")])
    rows = []
    for key, pairs in paired.groupby([*RUN, "benchmark"], sort=False):
        only_instance = int((pairs["num_correct"] > pairs["num_correct_baseline"]).sum())
        only_baseline = int((pairs["num_correct"] < pairs["num_correct_baseline"]).sum())
        row: dict[str, Any] = dict(zip([*RUN, "benchmark"], key, strict=True))
        row |= {"n": len(pairs), "only_instance": only_instance, "only_baseline": only_baseline}
        rows.append(row | {"p": mcnemar_test(only_instance, only_baseline)})
    return pd.DataFrame(rows, columns=[*RUN, "benchmark", "n", "only_instance", "only_baseline", "p"])
