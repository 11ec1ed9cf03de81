"""The text of a report: a caption for each table and figure, and the findings, which come first.

The text is in the templates of the folder `captions`, so that it can be edited without reading code. This module
computes the facts that the templates state, from the tables of the same study. Captions are reStructuredText:
`snakemake --report` shows each next to its file, and the findings as the first page.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nested_reft.config.study import instances
from nested_reft.embedded import PRETRAINED_WITH_LAYER_DROPOUT
from nested_reft.report.sources import RUN, Sources, instance_label


def signed(value: float) -> str:
    """Return a delta of shares as the paper prints it: three decimals, with its sign."""
    return f"{value:+.3f}"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:g} %"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def interval(row: Mapping[Any, Any]) -> str:
    """Return the interval of a delta in brackets, or `no interval`."""
    return "no interval" if pd.isna(row["ci_low"]) else f"[{signed(row['ci_low'])}, {signed(row['ci_high'])}]"


def instance(row: Mapping[Any, Any], grid: Mapping[str, Any]) -> str:
    """Return the name of an instance of this grid in a sentence."""
    return f"{instance_label(row, grid)} on {row['model']}, {row['dataset']}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "captions"),
    undefined=StrictUndefined,  # a name that no fact has is an error and not an empty string
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {f.__name__: f for f in (signed, percent, plural, interval, instance)}


def layer_dropout_models(config: Mapping[str, Any]) -> list[str]:
    """Return the models of a study that were pretrained with layer dropout, as far as that is known."""
    paths = {f"embedded/{name}" for name in PRETRAINED_WITH_LAYER_DROPOUT}
    return [model for model in config["grid"]["model"] if config["models"][model]["path"] in paths]


def layer_dropout_note(config: Mapping[str, Any]) -> str:
    """Return the sentence on models pretrained with layer dropout, or an empty string where there are none."""
    models = layer_dropout_models(config)
    return TEMPLATES.get_template("_layer_dropout.rst.j2").render(layer_dropout_models=models) if models else ""


def study_facts(sources: Sources) -> dict[str, Any]:
    """Return the facts about the runs: the grid, the benchmarks, the numbers of runs, and the missing products."""
    config, grid = sources.config, sources.config["grid"]
    num_instances = len(instances(grid))
    trained = sources.results[sources.results["product"] == "train"]
    seeds = len(grid["seed"])
    problems = "problems within benchmarks"
    return {
        "study": config["study"],
        "grid": grid,
        "num_instances": num_instances,
        "num_seeds": seeds,
        "num_planned": len(grid["model"]) * len(grid["dataset"]) * seeds * (1 + num_instances),
        "num_present": len(trained.drop_duplicates(RUN)),
        "num_runs": sources.provenance["runs"],
        "missing": sources.provenance["missing"],
        "max_steps": config["training"]["max_steps"],
        "num_samples": config["evaluation"]["num_samples"],
        "benchmarks": sources.results.groupby("benchmark", sort=False)["n"].max().to_dict(),
        "confidence": config["analysis"]["confidence"],
        "level": round(1 - config["analysis"]["confidence"], 10),
        "coverage": f"{problems} (one seed)" if seeds == 1 else f"{seeds} seeds and {problems}",
        "layer_dropout_models": layer_dropout_models(config),
    }


def delta_facts(deltas: pd.DataFrame) -> dict[str, Any]:
    """Return which accuracy deltas are resolved, and the range and the precision of the others."""
    accuracy = deltas[deltas["metric"] == "accuracy"]
    resolved = accuracy[accuracy["verdict"] == "resolved"].sort_values("absolute_delta")
    others = accuracy[accuracy["verdict"] == "not resolved"]
    speed = 100 * deltas.loc[deltas["metric"] == "token_speed_tok_s", "relative_delta"]
    num_tested = len(resolved) + len(others)
    unresolved = {
        "number": len(others),
        "lowest": others["absolute_delta"].min(),
        "highest": others["absolute_delta"].max(),
        "half_width": ((others["ci_high"] - others["ci_low"]) / 2).median(),
    }
    return {
        "num_tested": num_tested,
        "resolved": resolved.to_dict("records"),
        "num_resolved_lower": int((resolved["absolute_delta"] < 0).sum()),
        "num_resolved_higher": int((resolved["absolute_delta"] > 0).sum()),
        "unresolved": unresolved if len(others) else None,
        "verdicts": f"{len(resolved)} of {num_tested} accuracy deltas are resolved",
        "token_speeds": f"Token speeds change by {speed.min():+.1f} % to {speed.max():+.1f} %",
    }


def table_facts(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the rows that captions quote, and the range of the sampling speed-ups."""
    counts, efficiency = tables["strategy_counts"], tables["efficiency"]
    measured = efficiency.dropna(subset="sampling_speed_up")
    speed_up = {
        "lowest": measured["sampling_speed_up"].min(),
        "median": measured["sampling_speed_up"].median(),
        "highest": measured["sampling_speed_up"].max(),
        "bound": efficiency["bound"].max(),
        "bound_with_lm_head": efficiency["bound_with_lm_head"].max(),
    }
    return {
        "tables": tables,
        "extremes": tables["table2"].dropna(subset="best_by_chance").to_dict("records"),
        "counts": counts.to_dict("records"),
        "num_cells": int(counts["cells"].max()),
        "counts_are_by_chance": bool(counts[["best_p", "worst_p"]].min().min() >= 0.05),
        "stages": tables["stages"].dropna(subset="accuracy").to_dict("records"),
        "speed_up": speed_up if len(measured) else None,
    }


def render(sources: Sources, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return file name -> text: `findings.rst`, and `caption_<name>.rst` for each table and figure.

    Args:
        sources: the sources of the report.
        tables: the tables of the report, by name.
    """
    facts = study_facts(sources) | delta_facts(tables["deltas"]) | table_facts(tables)
    return {
        name.removesuffix(".j2"): TEMPLATES.get_template(name).render(facts).strip() + "\n"
        for name in TEMPLATES.list_templates()
        if not name.startswith("_")  # parts that others include
    }
