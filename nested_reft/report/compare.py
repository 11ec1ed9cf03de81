"""The command `compare`: two evaluations or two studies, problem by problem.

The problems are the same on both sides, so differences of accuracy are paired: a problem that is easy for one model is
easy for the other, and that part of the variation cancels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nested_reft.config.study import INSTANCE
from nested_reft.errors import UserError
from nested_reft.records.files import read_versioned_json
from nested_reft.records.products import evaluation_folder
from nested_reft.report import captions
from nested_reft.report.answer import DECIDED
from nested_reft.report.clusters import cluster_codes
from nested_reft.report.deltas import num_independent, problems_of, verdict
from nested_reft.report.interim import run_counts, without_verdicts
from nested_reft.report.page import PERCENT, POINTS, table_columns
from nested_reft.report.sources import CELL, problem_scores, read_sources
from nested_reft.report.statistics import accuracy_deltas, equivalence_p, holm

PRODUCT = ["product", *CELL, *INSTANCE]
OVERALL = "all, mean"
COLUMNS = ["n", "accuracy_of_A", "accuracy_of_B", "delta", "ci_low", "ci_high", "p", "p_equivalent"]
UNITS = {"accuracy_of_A": PERCENT, "accuracy_of_B": PERCENT, "delta": POINTS}


class Side(NamedTuple):
    """One of the two things that are compared.

    Attributes:
        name: how messages and the table name it.
        scores: a row per product and problem: PRODUCT, `seed`, `benchmark`, `problem_id`, `num_correct`, `samples`,
            and the text `problem`, which is empty where it is not known.
        settings: dotted key -> value of all settings.
        unfinished: what a study still lacks, such as `59 of 60 runs are finished`; empty if it is finished.
    """

    name: str
    scores: pd.DataFrame
    settings: dict[str, Any]
    unfinished: str = ""


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def read_report(folder: Path) -> Side:
    """Return the products of a study from the folder of its report.

    Raises:
        UserError: the folder holds no report.
    """
    sources = read_sources(folder)
    finished, planned = run_counts(sources)
    unfinished = f"{finished} of {planned} runs are finished" if finished < planned else ""
    return Side(str(folder), sources.problem_scores.assign(problem=""), flat(sources.config), unfinished)


def read_run(path: Path) -> Side:
    """Return one evaluated product, whose axes are left empty: any two products can be compared.

    Raises:
        UserError: the path leads to no finished evaluation.
    """
    folder = evaluation_folder(path)
    records = pd.read_parquet(folder / "records.parquet")
    texts = records.drop_duplicates(["benchmark", "problem_id"])[["benchmark", "problem_id", "problem"]]
    scores = problem_scores(records).merge(texts, on=["benchmark", "problem_id"])
    settings = read_versioned_json(folder / "run.json")["settings"]
    product = path.parent if path.name == "model" else path
    if (product / "run.json").exists():
        settings = read_versioned_json(product / "run.json")["settings"] | settings
    return Side(str(path), scores.assign(**dict.fromkeys([*PRODUCT, "seed"])), flat(settings))


def check_same_problems(a: Side, b: Side) -> None:
    """Refuse two sides that were not evaluated on the same problems of the same benchmarks.

    Raises:
        UserError: they were not; the message names the benchmarks, or the first problem that differs.
    """
    names = [list(side.scores["benchmark"].drop_duplicates()) for side in (a, b)]
    if set(names[0]) != set(names[1]):
        raise UserError(
            f"{a.name} was evaluated on {', '.join(names[0])}, but {b.name} on {', '.join(names[1])}; "
            "compare evaluations on the same benchmarks"
        )
    for name in names[0]:
        sources = [{key: side.settings.get(f"benchmarks.{name}.{key}") for key in ("path", "size")} for side in (a, b)]
        if sources[0] != sources[1]:
            raise UserError(
                f"the benchmark {name} is {sources[0]} in {a.name}, but {sources[1]} in {b.name}; compare studies "
                "with the same benchmarks"
            )
        problems = [
            side.scores[side.scores["benchmark"] == name]
            .drop_duplicates("problem_id")
            .set_index("problem_id")["problem"]
            for side in (a, b)
        ]
        if len(problems[0]) != len(problems[1]):
            raise UserError(
                f"the benchmark {name} has {len(problems[0])} problems in {a.name}, but {len(problems[1])} in "
                f"{b.name}; compare evaluations on the same problems"
            )
        different = problems[0] != problems[1].reindex(problems[0].index)
        if different.any():
            first = different.idxmax()
            raise UserError(
                f"problem {first} of the benchmark {name} is {problems[0][first]!r:.60} in {a.name}, but "
                f"{problems[1][first]!r:.60} in {b.name}; compare evaluations on the same problems"
            )


def by_product(scores: pd.DataFrame) -> Any:
    """Return the scores grouped by product; axes that a product does not have, such as a seed, become comparable."""
    filled = scores.assign(seed=scores["seed"].astype(object).fillna(0))
    filled[PRODUCT] = filled[PRODUCT].astype(object).fillna("")
    return filled.groupby(PRODUCT, sort=False)


def compare(a: pd.DataFrame, b: pd.DataFrame, confidence: float, margin: float) -> pd.DataFrame:
    """Return a row per product of both sides and benchmark, and one for the mean over the benchmarks.

    `delta` is the accuracy of B minus that of A, over the seeds that both have. All accuracies are shares. With
    several seeds the interval covers seeds and problems, with one seed it covers problems. `p` is that of a delta of
    zero, and `p_equivalent` that of a delta at least as large as the margin. `p_holm` and `p_equivalent_holm` are
    corrected for the number of products, and `verdict` follows from them as in the report of a study.

    Args:
        a: the scores of side A.
        b: the scores of side B, for the same problems.
        confidence: the level of the intervals.
        margin: the smallest change of the accuracy that matters, a share.
    """
    rows = []
    sides = [dict(list(by_product(scores))) for scores in (a, b)]
    for product in [key for key in sides[0] if key in sides[1]]:
        wide = [
            side.assign(score=side["num_correct"] / side["samples"])
            .pivot(index=["benchmark", "problem_id"], columns="seed", values="score")
            .sort_index()
            for side in (sides[0][product], sides[1][product])
        ]
        seeds = sorted(set(wide[0].columns) & set(wide[1].columns))
        if not seeds:
            continue
        scores = np.stack([table[seeds].to_numpy(float).T for table in wide])  # (2, seeds, n)
        benchmarks = wide[0].index.get_level_values("benchmark").to_numpy(str)
        problems = problems_of(sides[0][product])
        clusters, samples = cluster_codes(problems), int(problems["samples"].min())
        names = list(dict.fromkeys(sides[0][product]["benchmark"]))
        for name in [*names, OVERALL] if len(names) > 1 else names:
            chosen = np.ones(len(benchmarks), bool) if name == OVERALL else benchmarks == name
            own = None if clusters is None else clusters[chosen]
            (delta,) = accuracy_deltas(scores[:, :, chosen], benchmarks[chosen], confidence, clusters=own)
            p_equivalent = equivalence_p(delta, margin, num_independent(benchmarks[chosen], own), samples)
            row = dict(zip(PRODUCT, product, strict=True)) | {"seeds": len(seeds), "benchmark": name}
            values = [int(chosen.sum()), delta.baseline, delta.instance, delta.absolute, delta.ci_low, delta.ci_high]
            rows.append(row | dict(zip(COLUMNS, [*values, delta.p, p_equivalent], strict=True)))
    table = pd.DataFrame(rows, columns=[*PRODUCT, "seeds", "benchmark", *COLUMNS])
    for _, group in table.groupby("benchmark"):
        for name in ("p", "p_equivalent"):
            table.loc[group.index, f"{name}_holm"] = holm(group[name])
    judged = zip(table["delta"], table["p_holm"], table["p_equivalent_holm"], strict=True)
    return table.assign(verdict=[verdict(delta, p, p_equivalent, confidence) for delta, p, p_equivalent in judged])


def overall_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows for the mean over the benchmarks; with one benchmark, its rows."""
    return table[table["benchmark"] == OVERALL] if (table["benchmark"] == OVERALL).any() else table


def conclusion(table: pd.DataFrame, confidence: float, margin: float) -> str:
    """Return what a table says about the overall accuracy, in one sentence."""
    rows, level = overall_rows(table), f"{1 - confidence:.2g}"
    if len(rows) > 1:
        counts = rows["verdict"].value_counts().reindex(DECIDED, fill_value=0)
        found = ", ".join(f"{name} in {count}" for name, count in counts.items())
        return (
            f"B is {found} of {len(rows)}, with p below {level} after Holm's correction and a margin of {margin:g} "
            "points."
        )
    (row,) = rows.to_dict("records")
    a, b = (captions.accuracy(row[f"accuracy_of_{side}"]) for side in "AB")
    p, p_equivalent = (f"{row[name]:.2g}" for name in ("p_holm", "p_equivalent_holm"))
    of_margin = f"a change of {margin:g} points or more"
    reason = {
        "better": f"says that B is better, because p = {p} is below {level}",
        "worse": f"says that B is worse, because p = {p} is below {level}",
        "equivalent": f"says that B is equivalent, because {of_margin} has p = {p_equivalent}, below {level}",
        "inconclusive": f"is inconclusive, because neither no change (p = {p}) nor {of_margin} (p = {p_equivalent}) "
        f"has a p below {level}",
    }[row["verdict"]]
    return (
        f"The accuracy is {a} in A and {b} in B. The delta of {captions.points(row['delta'])} points "
        f"({captions.percent(confidence)} interval {captions.interval(row)}) {reason}."
    )


def different_settings(a: Side, b: Side) -> list[str]:
    """Return the settings that differ, as lines `key: value of A | value of B`."""
    keys = [key for key in {**a.settings, **b.settings} if a.settings.get(key) != b.settings.get(key)]
    return [f"{key}: {a.settings.get(key, 'not set')} | {b.settings.get(key, 'not set')}" for key in keys]


def comparison_text(a: Side, b: Side, confidence: float, margin: float) -> str:
    """Return the comparison as a sentence, the settings that differ, and a table in Markdown.

    If one of two studies is not finished, the table has no p-values, and each verdict is `waiting`.

    Args:
        a: side A.
        b: side B.
        confidence: the level of the intervals.
        margin: the smallest change of the accuracy that matters, in percentage points.

    Raises:
        UserError: the sides have other problems, or no product in common.
    """
    check_same_problems(a, b)
    table = compare(a.scores, b.scores, confidence, margin / 100)
    if table.empty:
        raise UserError(
            f"{a.name} and {b.name} have no model, dataset, instance and seed in common; compare two runs by their "
            "folders instead"
        )
    said = conclusion(table, confidence, margin)
    if unfinished := [f"{side.name} is not finished ({side.unfinished})" for side in (a, b) if side.unfinished]:
        table = without_verdicts(table)
        said = f"{' and '.join(unfinished)}, so that the verdicts wait. Compare again when all runs are finished."
    # The products without skipped layers have the empty border.
    one_border = table.loc[table["skip_ratio"].map(bool), "border"].nunique() < 2
    if table["product"].any():  # two studies: a row per product
        shown = overall_rows(table).drop(
            columns=["benchmark", "p", "p_equivalent", *(["border"] if one_border else [])]
        )
    else:
        shown = table.drop(columns=[*PRODUCT, "seeds", "p_holm", "p_equivalent_holm"])
    columns = list(table_columns(shown, UNITS))
    lines = pd.DataFrame({heading: [cell.text for cell in cells] for heading, cells in columns})
    sides = ["right" if any(cell.is_number for cell in cells) else "left" for _, cells in columns]
    changed = different_settings(a, b)
    return "\n".join(
        [
            f"A: {a.name}",
            f"B: {b.name}",
            *(["Settings that differ, A | B:", *(f"  {line}" for line in changed)] if changed else []),
            "",
            "Accuracies are in percent. A delta is the accuracy of B minus that of A, in percentage points.",
            "",
            lines.to_markdown(index=False, disable_numparse=True, colalign=sides),
            "",
            said,
        ]
    )
