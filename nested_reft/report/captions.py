"""The text of a report: a caption for each table and figure, and the findings, which come first.

The text is in the templates of the folder `captions`, so that it can be edited without reading code. This module
computes the facts that the templates state, from the tables of the same study. Captions are reStructuredText:
`snakemake --report` shows each next to its file, and the findings as the first page.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nested_reft.config.study import instances
from nested_reft.embedded import PRETRAINED_WITH_LAYER_DROPOUT
from nested_reft.report.answer import answer_facts
from nested_reft.report.figure_facts import figure_facts
from nested_reft.report.glossary import WEIGHTS
from nested_reft.report.interim import run_counts
from nested_reft.report.noise import noise_facts
from nested_reft.report.sources import Sources, instance_label


def points(delta: float) -> str:
    """Return a delta of accuracies in percentage points, with its sign."""
    return f"{round(100 * delta, 1) + 0:+.1f}"  # + 0 turns -0 into 0


def accuracy(share: float) -> str:
    """Return an accuracy in percent, with one decimal."""
    return f"{100 * share:.1f}%"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:g}%"


def signed_percent(share: float) -> str:
    """Return a relative change as a percentage with its sign."""
    return f"{points(share)}%"


def range_of(values: Mapping[str, float]) -> str:
    """Return the lowest and the highest accuracy as `90.0% to 92.0%`, or the only one."""
    lowest, highest = accuracy(values["lowest"]), accuracy(values["highest"])
    return lowest if lowest == highest else f"{lowest} to {highest}"


def magnitude(values: Mapping[str, float]) -> str:
    """Return a range of sizes of deltas in percentage points as `3.3 to 4.5`, or the only one."""
    lowest, highest = (f"{100 * values[end]:.1f}" for end in ("lowest", "highest"))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def magnitude_of(share: float) -> str:
    """Return the size of a change of the accuracy in percentage points, without its unit."""
    return f"{100 * share:.1f}"


def times(ratio: float) -> str:
    """Return a ratio of speeds with two decimals."""
    return f"{ratio:.2f}"


def listing(items: Iterable[str]) -> str:
    """Return items as a list in a sentence, as in `a, b and c`."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def literal(text: str) -> str:
    """Return a text that reStructuredText shows unchanged, such as a message of a log."""
    return re.sub(r"([\\*`|_<>\[\]])", r"\\\1", text)


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def interval(row: Mapping[Any, Any]) -> str:
    """Return the interval of a delta of accuracies, in points and in brackets, or `no interval`."""
    return "no interval" if pd.isna(row["ci_low"]) else f"[{points(row['ci_low'])}, {points(row['ci_high'])}]"


def speed_interval(row: Mapping[str, Any]) -> str:
    """Return the interval of a speed-up, in brackets."""
    return f"[{row['speed_up_ci_low']:.2f}, {row['speed_up_ci_high']:.2f}]"


def instance(row: Mapping[Any, Any], grid: Mapping[str, Any]) -> str:
    """Return the name of an instance of this grid in a sentence."""
    return f"{instance_label(row, grid)} on {row['model']}, {row['dataset']}"


def dataset_words(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what the training sets of a study are, and how many problems are used -> their names."""
    words: dict[str, list[str]] = {}
    for name in config["grid"]["dataset"]:
        path, size = config["datasets"][name]["path"], config["datasets"][name]["size"]
        generated = path.startswith("embedded/")
        selected = config["datasets"][name].get("rows")
        whole = f"the rows {selected} of {path}" if selected else path
        rows = whole if size is None else f"the first {size} {'' if selected else 'rows '}of {whole}"
        words.setdefault(f"{size} generated word problems" if generated else rows, []).append(name)
    return words


def choice(number: int, total: int) -> str:
    """Return how many of all comparisons, as in `2 of 9 comparisons`."""
    if number == total:
        return {1: "the only comparison", 2: "both comparisons"}.get(total, f"all {total} comparisons")
    return f"{number} of {total} comparisons"


def verdict_counts(counts: Mapping[str, int], total: int) -> str:
    """Return how many accuracy deltas have each verdict, as in `9 accuracy deltas: 2 worse, 7 inconclusive`."""
    words = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return f"{plural(total, 'accuracy delta')}: {words}" if total else "no accuracy delta has runs"


def spread(share: float) -> str:
    """Return by how much times or speeds differ, as a percentage."""
    return f"{100 * share:.{1 if share < 0.1 else 0}f}%"


def size(share: float) -> str:
    """Return the size of a change of the accuracy with its unit, as in `1 point`."""
    number = f"{round(100 * abs(share), 1):g}"
    return f"{number} point{'' if number == '1' else 's'}"


FILTERS = (
    points,
    accuracy,
    percent,
    signed_percent,
    range_of,
    magnitude,
    magnitude_of,
    times,
    listing,
    literal,
    plural,
    interval,
    speed_interval,
    instance,
    instance_label,
    choice,
    size,
    spread,
)
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "captions"),
    undefined=StrictUndefined,  # a name that no fact has is an error and not an empty string
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {f.__name__: f for f in FILTERS}


def layer_dropout_models(config: Mapping[str, Any]) -> list[str]:
    """Return the models of a study that were pretrained with layer dropout, as far as that is known."""
    paths = {f"embedded/{name}" for name in PRETRAINED_WITH_LAYER_DROPOUT}
    return [model for model in config["grid"]["model"] if config["models"][model]["path"] in paths]


def layer_dropout_note(config: Mapping[str, Any]) -> str:
    """Return the sentence on models pretrained with layer dropout, or an empty string where there are none."""
    models = layer_dropout_models(config)
    return TEMPLATES.get_template("_layer_dropout.rst.j2").render(layer_dropout_models=models) if models else ""


def cluster_counts(problem_scores: pd.DataFrame) -> dict[str, int]:
    """Return benchmark -> the number of its clusters, for benchmarks whose problems have clusters."""
    if "cluster" not in problem_scores:
        return {}
    counts = problem_scores.groupby("benchmark")["cluster"].nunique()
    return {str(name): int(number) for name, number in counts.items() if number}


def study_facts(sources: Sources) -> dict[str, Any]:
    """Return the facts about the runs: the grid, the benchmarks, the numbers of runs, and the missing products."""
    config, grid = sources.config, sources.config["grid"]
    num_present, num_planned = run_counts(sources)
    seeds = len(grid["seed"])
    return {
        "study": config["study"],
        "grid": grid,
        "num_instances": len(instances(grid)),
        "num_seeds": seeds,
        "seeds_words": plural(seeds, "seed") if num_present == num_planned else f"up to {plural(seeds, 'seed')}",
        "num_planned": num_planned,
        "num_present": num_present,
        "num_missing": num_planned - num_present,
        "num_runs": sources.provenance["runs"],
        "missing": sources.provenance["missing"],
        "failures": sources.provenance.get("failures", {}),  # not in reports of earlier versions
        "plainer_samplers": sources.provenance.get("plainer_samplers", {}),  # not in reports of earlier versions
        "dataset_words": dataset_words(config),
        "mitigation_words": {name: WEIGHTS.get(name, "by a rule of your own") for name in grid["mitigation"]},
        "max_steps": config["training"]["max_steps"],
        "num_samples": config["evaluation"]["num_samples"],
        "benchmarks": sources.results.groupby("benchmark", sort=False)["n"].max().to_dict(),
        "clusters": cluster_counts(sources.problem_scores),
        "confidence": config["analysis"]["confidence"],
        "margin": config["analysis"]["margin"] / 100,
        "level": round(1 - config["analysis"]["confidence"], 10),
        "layer_dropout_models": layer_dropout_models(config),
    }


def table_facts(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the rows that captions quote, and the range of the token speeds."""
    counts, deltas = tables["strategy_counts"], tables["deltas"]
    speed = 100 * deltas.loc[deltas["metric"] == "token_speed_tok_s", "relative_delta"]
    return {
        "tables": tables,
        "num_cells": int(counts["cells"].max()),
        "counts_are_by_chance": bool(counts[["best_p", "worst_p"]].min().min() >= 0.05),
        "token_speeds": f"Token speeds change by {speed.min():+.1f}% to {speed.max():+.1f}%",
    }


def report_facts(sources: Sources, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return everything that a template may state, from the sources and the tables of a report."""
    answer = answer_facts(sources, tables)
    verdicts = {"verdicts": verdict_counts(answer["counts"], answer["num_tested"])}
    noise = noise_facts(tables["noise"], len(sources.config["grid"]["seed"]))
    return study_facts(sources) | table_facts(tables) | answer | figure_facts(sources) | verdicts | noise


def text(template: str, facts: Mapping[str, Any]) -> str:
    """Return the text of one template, as reStructuredText."""
    return TEMPLATES.get_template(f"{template}.rst.j2").render(facts).strip() + "\n"


def render(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> text: `findings`, and `caption_<name>` for each table and figure.

    Args:
        facts: what `report_facts` returns.
    """
    names = [name.removesuffix(".rst.j2") for name in TEMPLATES.list_templates()]
    return {name: text(name, facts) for name in names if not name.startswith("_")}  # others include the parts `_...`
