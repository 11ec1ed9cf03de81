"""The trend of the accuracy with the share of layers skipped: over all runs, per mitigation, and per model."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from nested_reft.config.study import BASELINE, instances
from nested_reft.nesting import num_skipped
from nested_reft.report.clusters import Codes, cluster_codes
from nested_reft.report.deltas import cell_scores, num_independent, problems_of, verdict
from nested_reft.report.sources import Sources
from nested_reft.report.statistics import Delta, Floats, equivalence_p, holm, macro_average
from nested_reft.report.trend import Trend, cell_slope, ordering_test, pooled_trend

ALL_RUNS = "all runs"
TREND = ["part", "cells", "seeds", "covers", "slope", "ci_low", "ci_high", "p", "p_holm", "p_order"]
TREND += ["largest_skip_ratio", "delta", "delta_ci_low", "delta_ci_high", "p_equivalent", "p_equivalent_holm"]
TREND += ["verdict"]
STEP = 0.1  # the slope is stated as the change per this share of the layers


class CellScores(NamedTuple):
    """The scores of one cell, and the share of its model's layers that each instance skips."""

    model: str
    scores: Floats  # (1 + instances, seeds, n), the baseline first; NaN marks a missing run
    shares: Floats  # (1 + instances,)
    benchmarks: npt.NDArray[np.str_]  # (n,)
    samples: int
    clusters: Codes | None = None  # (n,), or None if each problem is a cluster of its own


def scores_of_cells(sources: Sources) -> Iterator[CellScores]:
    """Yield the scores of each cell that has runs."""
    grid = sources.config["grid"]
    with_baseline = [BASELINE, *instances(grid)]
    scores = sources.problem_scores.query("product == 'train'")
    for model, dataset in product(grid["model"], grid["dataset"]):
        rows = scores[(scores["model"] == model) & (scores["dataset"] == dataset)]
        if len(rows):
            layers = sources.provenance["models"][model]["num_layers"]
            shares = [num_skipped(layers, instance["skip_ratio"]) / layers for instance in with_baseline]
            values, benchmarks = cell_scores(rows, with_baseline, grid["seed"])
            samples = int(rows["samples"].min())
            yield CellScores(model, values, np.array(shares), benchmarks, samples, cluster_codes(problems_of(rows)))


def parts(grid: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    """Yield (axis, value) of each part of a study that has a trend of its own, and first (ALL_RUNS, None)."""
    yield ALL_RUNS, None
    yield from (("mitigation", value) for value in grid["mitigation"])
    if len(grid["model"]) > 1:
        yield from (("model", value) for value in grid["model"])


def trend_row(cells: list[CellScores], margin: float, confidence: float) -> dict[str, Any]:
    """Return the trend of some cells, without what depends on other rows of the table.

    Args:
        cells: the cells, each with its baseline and the instances that count.
        margin: the smallest change of the accuracy that matters, a share.
        confidence: the level of the intervals.
    """
    found = [(cell, cell_slope(cell.scores, cell.shares, cell.benchmarks)) for cell in cells]
    sloped = [(cell, slope) for cell, slope in found if slope is not None]
    if not sloped:
        return {"cells": 0, "seeds": 0, "covers": "missing", "p": np.nan, "p_equivalent": np.nan, "delta": np.nan}
    benchmarks, clusters = sloped[0][0].benchmarks, sloped[0][0].clusters
    trend = pooled_trend([slope for _, slope in sloped], benchmarks, confidence, clusters)
    averages = [macro_average(cell.scores, cell.benchmarks) for cell, _ in sloped]
    largest = float(np.mean([cell.shares.max() for cell, _ in sloped]))
    sizes, samples = num_independent(benchmarks, clusters), min(cell.samples for cell, _ in sloped)
    return {
        "cells": trend.cells,
        "seeds": max(int((~np.isnan(values)).any(axis=0).sum()) for values in averages),
        "covers": "seeds, problems" if trend.covers_seeds else "problems",
        **{name: STEP * getattr(trend, name) for name in ("slope", "ci_low", "ci_high")},
        "p": trend.p,
        "p_order": ordering_test(averages, sloped[0][0].shares),
        "delta": largest * trend.slope,
        "delta_ci_low": largest * trend.ci_low,
        "delta_ci_high": largest * trend.ci_high,
        "p_equivalent": equivalence_p(change(trend, largest), margin, sizes, samples),
    }


def change(trend: Trend, share: float) -> Delta:
    """Return the change of the accuracy that a trend gives at a share of the layers, as a delta to no layers."""
    return Delta(absolute=share * trend.slope, standard_error=share * trend.standard_error, freedom=trend.freedom)


def trend_table(sources: Sources) -> pd.DataFrame:
    """Return one row for the study and for each mitigation and model: how the accuracy changes with the skip ratio.

    `slope` is the change per 10 % of the layers, and `delta` what it amounts to at the largest skip ratio. `p` is that
    of a slope of zero, `p_order` that of the order of the accuracies, and `p_equivalent` that of a `delta` at least as
    large as `analysis.margin`. `p_holm` and `p_equivalent_holm` are corrected over the mitigations, or the models.
    """
    grid, analysis = sources.config["grid"], sources.config["analysis"]
    confidence = analysis["confidence"]
    with_baseline = [BASELINE, *instances(grid)]
    cells = list(scores_of_cells(sources))
    rows = []
    for axis, value in parts(grid):
        chosen = []
        for cell in cells:
            axes = [{ALL_RUNS: None, "model": cell.model} | instance for instance in with_baseline]
            is_in = [of_instance[axis] == value for of_instance in axes]
            kept = [0, *(place for place in range(1, len(axes)) if is_in[place])]
            if len(kept) > 1:
                chosen.append(cell._replace(scores=cell.scores[kept], shares=cell.shares[kept]))
        row = trend_row(chosen, analysis["margin"] / 100, confidence)
        part = ALL_RUNS if axis == ALL_RUNS else f"{axis} {value}"
        rows.append({"axis": axis, "part": part, "largest_skip_ratio": max(grid["skip_ratio"])} | row)
    table = pd.DataFrame(rows)
    for p in ("p", "p_equivalent"):
        table[f"{p}_holm"] = table.groupby("axis", sort=False)[p].transform(holm)
    values = zip(table["delta"], table["p_holm"], table["p_equivalent_holm"], strict=True)
    table["verdict"] = [verdict(delta, p, p_equivalent, confidence) for delta, p, p_equivalent in values]
    return table.reindex(columns=TREND)
