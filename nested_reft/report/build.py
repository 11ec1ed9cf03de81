"""Writing a report: sources, tables, figures, captions."""

from pathlib import Path

import pandas as pd

from nested_reft.config.study import Study
from nested_reft.report import captions
from nested_reft.report import figures as plots
from nested_reft.report.deltas import delta_table, mcnemar_table, overall
from nested_reft.report.paper import config_table, paper_table2
from nested_reft.report.sources import PHASES, collect, read_sources, write_sources
from nested_reft.report.tables import (
    efficiency_table,
    provenance_table,
    stages_table,
    strategy_counts,
    table1,
    table2,
)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, Markdown and LaTeX (with the rules of the package booktabs)."""
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    shown = table.astype(object).where(table.notna(), "")
    path.with_suffix(".md").write_text(shown.to_markdown(index=False, floatfmt=".4f") + "\n")
    path.with_suffix(".tex").write_text(table.to_latex(index=False, escape=True, na_rep="", float_format="%.4f"))


def rebuild(folder: Path, out: Path) -> None:
    """Make every table, figure and caption of a report from the source files in it.

    Args:
        folder: the report that holds `results.csv` and the other sources.
        out: where to write; may be the same.
    """
    sources = read_sources(folder)
    out.mkdir(parents=True, exist_ok=True)
    grid = sources.config["grid"]
    per_run = overall(sources.results)
    per_run = per_run[per_run["product"] == "train"]
    deltas = delta_table(sources)
    accuracy = deltas[deltas["metric"] == "accuracy"]
    tables = {
        "table1": table1(sources.provenance["models"], grid["skip_ratio"]),
        "table2": table2(accuracy),
        "table2_paper": paper_table2(),
        "strategy_counts": strategy_counts(accuracy),
        "stages": stages_table(sources),
        "deltas": deltas,
        "mcnemar": mcnemar_table(sources),
        "efficiency": efficiency_table(deltas, per_run),
        "config": config_table(sources.config),
        "provenance": provenance_table(sources.provenance),
    }
    for name, table in tables.items():
        write_table(table, out / name)
    for name, text in captions.write_captions(sources.config, sources.provenance, sources.results, tables).items():
        (out / f"{name}.rst").write_text(text)

    for dataset in grid["dataset"]:
        plots.save(plots.dataset_figure(deltas[deltas["dataset"] == dataset]), out / f"figure_{dataset}")
    plots.save(plots.frontier(deltas), out / "frontier")
    plots.save(plots.heat_map(accuracy), out / "heat_map")
    plots.save(plots.speed_up(tables["efficiency"]), out / "speed_up")
    plots.save(plots.time_split(per_run, PHASES), out / "time_split")
    plots.save(plots.off_policy(sources.steps), out / "off_policy")
    plots.save(plots.reward_curves(sources.steps), out / "reward")


def report(study: Study, results: Path, out: Path) -> None:
    """Write the sources, and from them every table and figure of the study.

    Args:
        study: its configuration.
        results: the folder that the stages wrote into.
        out: the folder of the report.
    """
    write_sources(collect(study, results), out)
    rebuild(out, out)
