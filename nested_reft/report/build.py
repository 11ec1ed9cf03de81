"""Writing a report: from the sources to the tables, and from the tables to captions and figures."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nested_reft.config.study import Study
from nested_reft.report import captions, style
from nested_reft.report.deltas import delta_table, mcnemar_table, trained_runs
from nested_reft.report.figures import figures_of_study
from nested_reft.report.paper import config_table, paper_table2
from nested_reft.report.sources import Sources, collect, read_sources, write_sources
from nested_reft.report.tables import (
    answers_table,
    efficiency_table,
    provenance_table,
    stages_table,
    strategy_counts,
    table1,
    table2,
)


def make_tables(sources: Sources) -> dict[str, pd.DataFrame]:
    """Return the tables of a report by name."""
    deltas = delta_table(sources)
    accuracy = deltas[deltas["metric"] == "accuracy"]
    return {
        "table1": table1(sources.provenance["models"], sources.config["grid"]["skip_ratio"]),
        "table2": table2(accuracy),
        "table2_paper": paper_table2(),
        "strategy_counts": strategy_counts(accuracy),
        "stages": stages_table(sources),
        "answers": answers_table(sources),
        "deltas": deltas,
        "mcnemar": mcnemar_table(sources),
        "efficiency": efficiency_table(deltas, trained_runs(sources)),
        "config": config_table(sources.config),
        "provenance": provenance_table(sources.provenance),
    }


def draw_figures(sources: Sources, tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure | str]]:
    """Yield the figures of a report with their names; the reason instead of a figure that cannot be drawn."""
    for name, draw in figures_of_study(sources.config).items():
        yield name, draw(sources, tables)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, Markdown and LaTeX (with the rules of the package booktabs)."""
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    shown = table.astype(object).where(table.notna(), "")
    path.with_suffix(".md").write_text(shown.to_markdown(index=False, floatfmt=".4f") + "\n")
    path.with_suffix(".tex").write_text(table.to_latex(index=False, escape=True, na_rep="", float_format="%.4f"))


def rebuild(folder: Path, out: Path) -> None:
    """Make every table, caption and figure of a report from its source files.

    Args:
        folder: the report that holds `results.csv` and the other sources.
        out: where to write; may be the same folder.

    Raises:
        UserError: if a source file is missing, or if the report has another schema version.
    """
    sources = read_sources(folder)
    tables = make_tables(sources)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_table(table, out / name)
    for name, text in captions.render(sources, tables).items():
        (out / name).write_text(text)
    note = captions.layer_dropout_note(sources.config)
    for name, figure in draw_figures(sources, tables):
        if isinstance(figure, str):
            continue  # an older report lacks what the figure shows
        style.save(figure, out / name, note)


def report(study: Study, results: Path, out: Path) -> None:
    """Write the sources of a report, and from them every table, caption and figure.

    Args:
        study: the configuration.
        results: the folder that the stages wrote into.
        out: the folder of the report.
    """
    write_sources(collect(study, results), out)
    rebuild(out, out)
