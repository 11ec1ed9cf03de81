"""The delta of every instance to its baseline, with intervals and tests.

An instance is a (skip ratio, border, mitigation), a cell is a (model, dataset). The baseline skips no layers.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nested_reft.config.study import BASELINE, instances
from nested_reft.nesting import num_skipped
from nested_reft.report.clusters import Codes, cluster_codes
from nested_reft.report.rounding import stated
from nested_reft.report.sources import CELL, INSTANCE, LOWER_IS_BETTER, MODEL_SIZES, PHASES, RUN, SPEEDS, Sources
from nested_reft.report.statistics import (
    Delta,
    Floats,
    accuracy_deltas,
    equivalence_p,
    holm,
    mcnemar_test,
    metric_deltas,
)

Instance = dict[str, Any]  # axis -> value


def overall(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per product: its unweighted mean accuracy over the benchmarks, the paper's performance."""
    firsts = [*MODEL_SIZES, "mean_reward", *SPEEDS, *PHASES]
    grouped = results.groupby(["product", *RUN], dropna=False, sort=False)
    aggregated = grouped.agg(
        accuracy=("accuracy", "mean"), **{name: (name, "first") for name in firsts if name in results}
    )
    return aggregated.reset_index()


def trained_runs(sources: Sources) -> pd.DataFrame:
    """Return a row per training run, its accuracy averaged over the benchmarks."""
    products = overall(sources.results)
    return products[products["product"] == "train"]


def problems_of(problem_scores: pd.DataFrame) -> pd.DataFrame:
    """Return a row per problem of some runs, in the order of `cell_scores`."""
    return problem_scores.drop_duplicates(["benchmark", "problem_id"]).sort_values(["benchmark", "problem_id"])


def num_independent(benchmarks: npt.NDArray[np.str_], clusters: Codes | None) -> Codes:
    """Return for each benchmark the number of its clusters, or of its problems if there are no clusters."""
    numbers = np.arange(len(benchmarks)) if clusters is None else clusters
    return np.array(pd.Series(numbers).groupby(benchmarks).nunique(), dtype=np.int64)


def cell_scores(
    problem_scores: pd.DataFrame, instances: list[Instance], seeds: list[int]
) -> tuple[Floats, npt.NDArray[np.str_]]:
    """Return scores (instances, seeds, n), NaN for a run that is missing, and the benchmark (n,) of each problem.

    Args:
        problem_scores: the problem scores of the runs of one cell.
        instances: the instances, the baseline first.
        seeds: the seeds of the grid.
    """
    problems = problems_of(problem_scores)
    wide = problem_scores.pivot(
        index=["benchmark", "problem_id"], columns=[*INSTANCE, "seed"], values="num_correct"
    ).sort_index()
    columns = pd.MultiIndex.from_tuples([(*instance.values(), seed) for instance in instances for seed in seeds])
    samples = problems["samples"].to_numpy(float)
    counts = wide.reindex(columns=columns).to_numpy(float).T  # (instances x seeds, n)
    scores = (counts / samples).reshape(len(instances), len(seeds), -1)
    return scores, problems["benchmark"].to_numpy(str)


def cell_deltas(
    runs: pd.DataFrame, problem_scores: pd.DataFrame, instances: list[Instance], seeds: list[int], confidence: float
) -> dict[str, list[Delta]]:
    """Return metric -> the delta of each instance of one cell to the baseline; without runs all are empty.

    Args:
        runs: the runs of the cell, a row each, as returned by `overall`.
        problem_scores: the problem scores of the same runs.
        instances: the instances without the baseline.
        seeds: the seeds of the grid.
        confidence: the confidence level of the intervals.
    """
    if problem_scores.empty:
        return {metric: [Delta()] * len(instances) for metric in ("accuracy", *SPEEDS)}
    with_baseline = [BASELINE, *instances]
    scores, benchmarks = cell_scores(problem_scores, with_baseline, seeds)
    clusters = cluster_codes(problems_of(problem_scores))
    deltas = {"accuracy": list(accuracy_deltas(scores, benchmarks, confidence, clusters=clusters))}
    keys = pd.MultiIndex.from_tuples([(*instance.values(), seed) for instance in with_baseline for seed in seeds])
    for metric in SPEEDS:
        values = runs.set_index([*INSTANCE, "seed"])[metric].reindex(keys).to_numpy(float)
        deltas[metric] = metric_deltas(values.reshape(len(with_baseline), -1), confidence)
    return deltas


def covers(metric: str, delta: Delta) -> str:
    """Return the sources of variation that the interval of a delta covers."""
    if not delta.seeds:
        return "missing"
    if metric == "accuracy":
        return "seeds, problems" if delta.covers_seeds else "problems"
    return "seeds" if delta.covers_seeds else "nothing"


def verdict(delta: float, p: float, p_equivalent: float, confidence: float, lower_is_better: bool = False) -> str:
    """Return what a delta says: `missing`, `equivalent`, `better`, `worse` or `inconclusive`.

    A change that is shown to be smaller than the margin does not matter, even where it is shown not to be zero, so
    that `equivalent` comes before `better` and `worse`. A p counts as the report states it.

    Args:
        delta: the delta; NaN for lack of runs.
        p: the p of the hypothesis that the delta is zero, after Holm's correction.
        p_equivalent: the p of the hypothesis that the delta is at least as large as the margin, after Holm's
            correction; NaN for a metric without a margin.
        confidence: a p below 1 - confidence is significant.
        lower_is_better: a smaller value of the metric is better, as for a run time.
    """
    level = round(1 - confidence, 10)
    if np.isnan(delta):
        return "missing"
    if stated("p", p_equivalent) < level:
        return "equivalent"
    if stated("p", p) < level:
        return "better" if (delta > 0) != lower_is_better else "worse"
    return "inconclusive"


def equivalence_ps(deltas: Sequence[Delta], problem_scores: pd.DataFrame, margin: float) -> list[float]:
    """Return for each accuracy delta of a cell the p of a change at least as large as the margin.

    Args:
        deltas: the accuracy deltas of the cell.
        problem_scores: the problem scores of the runs of the cell.
        margin: the smallest change of the accuracy that matters, a share.
    """
    if problem_scores.empty:
        return [float("nan")] * len(deltas)
    problems = problems_of(problem_scores)
    sizes = num_independent(problems["benchmark"].to_numpy(str), cluster_codes(problems))
    samples = int(problems["samples"].min())
    return [equivalence_p(delta, margin, sizes, samples) for delta in deltas]


def delta_table(sources: Sources) -> pd.DataFrame:
    """Return one row per instance and metric: its delta to the baseline, with interval, p and verdict.

    absolute_delta = metric - baseline's metric; relative_delta = absolute_delta / baseline's metric. `p` is that of a
    delta of zero, and `p_equivalent` that of an accuracy delta at least as large as `analysis.margin`. `p_holm` and
    `p_equivalent_holm` are adjusted over the instances of a cell and metric. `verdict` says what follows from them.
    """
    grid, analysis = sources.config["grid"], sources.config["analysis"]
    confidence = analysis["confidence"]
    grid_instances = instances(grid)
    runs = overall(sources.results).query("product == 'train'")
    problem_scores = sources.problem_scores.query("product == 'train'")
    rows: list[dict[str, Any]] = []
    for model, dataset in product(grid["model"], grid["dataset"]):
        shape = sources.provenance["models"].get(model)  # None as long as `prepare model` has not run
        cell_runs = runs[(runs["model"] == model) & (runs["dataset"] == dataset)]
        cell_problems = problem_scores[(problem_scores["model"] == model) & (problem_scores["dataset"] == dataset)]
        deltas = cell_deltas(cell_runs, cell_problems, grid_instances, grid["seed"], confidence)
        for metric, metric_row in deltas.items():
            ps_equivalent = [float("nan")] * len(metric_row)
            if metric == "accuracy":
                ps_equivalent = equivalence_ps(metric_row, cell_problems, analysis["margin"] / 100)
            adjusted = holm([delta.p for delta in metric_row]), holm(ps_equivalent)
            for instance, delta, p_equivalent, p_holm, p_equivalent_holm in zip(
                grid_instances, metric_row, ps_equivalent, *adjusted, strict=True
            ):
                rows.append(
                    {
                        "model": model,
                        "dataset": dataset,
                        **instance,
                        "num_skipped": num_skipped(shape["num_layers"], instance["skip_ratio"]) if shape else None,
                        "metric": metric,
                        "seeds": delta.seeds,
                        "covers": covers(metric, delta),
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
                        "p_equivalent": p_equivalent,
                        "p_equivalent_holm": p_equivalent_holm,
                        "verdict": verdict(
                            delta.absolute, p_holm, p_equivalent_holm, confidence, metric in LOWER_IS_BETTER
                        ),
                    }
                )
    return pd.DataFrame(rows)


def mcnemar_table(sources: Sources) -> pd.DataFrame:
    """Return McNemar's exact test of each run against its baseline, per benchmark and over all problems.

    The test is an additional check of the deltas and needs no assumptions; it considers neither the macro average nor
    seeds. It exists for one sample per problem only: with several samples the table is empty.
    """
    keys = [*CELL, "seed", "benchmark", "problem_id"]
    scores = sources.problem_scores.query("product == 'train' and samples == 1")
    baselines = scores[scores["skip_ratio"] == 0][[*keys, "num_correct"]]
    paired = scores[scores["skip_ratio"] > 0].merge(baselines, on=keys, suffixes=("", "_baseline"))
    paired = pd.concat([paired, paired.assign(benchmark="all problems")])
    right, right_before = paired["num_correct"], paired["num_correct_baseline"]
    paired = paired.assign(only_instance=right > right_before, only_baseline=right < right_before)
    counts = {"n": ("num_correct", "size"), **{name: (name, "sum") for name in ("only_instance", "only_baseline")}}
    table = paired.groupby([*RUN, "benchmark"], sort=False).agg(**counts).reset_index()
    table["p"] = list(map(mcnemar_test, table["only_instance"], table["only_baseline"]))
    return table
