"""Writing a report: from the sources to the tables, and from the tables to captions and figures."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nested_reft.config.layout import PAGE
from nested_reft.config.study import Study
from nested_reft.report import captions, page, style
from nested_reft.report.collect import collect
from nested_reft.report.contents import contents
from nested_reft.report.deltas import delta_table, mcnemar_table, trained_runs
from nested_reft.report.figures import figures_of_study
from nested_reft.report.figures.accuracy import forest
from nested_reft.report.figures.common import Tables
from nested_reft.report.interim import run_counts, without_verdicts
from nested_reft.report.noise import noise_table
from nested_reft.report.paper import config_table, paper_table2
from nested_reft.report.rounding import stated_table
from nested_reft.report.sources import Sources, read_sources, write_sources
from nested_reft.report.speed import is_measured, speed_slope_table, speed_table
from nested_reft.report.tables import (
    answers_table,
    efficiency_table,
    provenance_table,
    stages_table,
    strategy_counts,
    table1,
    table2,
)
from nested_reft.report.trend_table import trend_table


def make_tables(sources: Sources) -> dict[str, pd.DataFrame]:
    """Return the tables of a report by name, with the digits that a report states.

    The verdicts of an unfinished study wait, and its tables have no p.
    """
    finished, planned = run_counts(sources)
    judged = without_verdicts if finished < planned else lambda table: table
    deltas = stated_table(judged(delta_table(sources)))
    confidence = sources.config["analysis"]["confidence"]
    speed = stated_table(speed_table(sources.details.speed_rounds, confidence)) if is_measured(sources) else None
    accuracy = deltas[deltas["metric"] == "accuracy"]
    tables = {
        "table1": table1(sources.provenance["models"], sources.config["grid"]["skip_ratio"]),
        "table2": table2(accuracy),
        "table2_paper": paper_table2(),
        "trend": judged(trend_table(sources)),
        "strategy_counts": judged(strategy_counts(accuracy)),
        "stages": stages_table(sources),
        "answers": answers_table(sources),
        "deltas": deltas,
        "mcnemar": mcnemar_table(sources),
        "noise": noise_table(sources),
        "speed": speed_table(sources.details.speed_rounds, confidence),
        "speed_slope": speed_slope_table(sources.details.speed_rounds, confidence),
        "efficiency": efficiency_table(deltas, trained_runs(sources), speed),
        "config": config_table(sources.config),
        "provenance": provenance_table(sources.provenance),
    }
    return {name: stated_table(table) for name, table in tables.items()}


def draw_figure(name: str, sources: Sources, tables: Tables, out: Path | None) -> str:
    """Draw a figure of a report, and write it as SVG and PNG where a folder is given.

    Args:
        name: the name of the figure, or `page.NARROW_LEAD`: the first figure of the page as a phone shows it.
        sources: the sources of the report.
        tables: the tables of the report, by name.
        out: the folder to write to. The page alone shows the figure for a phone, so it is never written.

    Returns:
        The figure as SVG; for a figure that cannot be drawn, because an older report lacks what it shows, the reason.
    """
    note = captions.layer_dropout_note(sources.config)
    if name == page.NARROW_LEAD:
        return style.as_svg(forest(sources, tables, narrow=True), note)
    figure = figures_of_study(sources.config)[name](sources, tables)
    if isinstance(figure, str):
        return figure
    return style.save(figure, out / name, note) if out else style.as_svg(figure, note)


def draw_figures(sources: Sources, tables: Tables, out: Path | None = None) -> dict[str, str]:
    """Return what `draw_figure` returns for every figure of a report, by name.

    Most of the time of a report goes into its figures, so every core of the machine draws some of them.
    """
    names = [*figures_of_study(sources.config), page.NARROW_LEAD]
    draw = partial(draw_figure, sources=sources, tables=tables, out=out)
    with ProcessPoolExecutor(min(len(names), os.cpu_count() or 1)) as processes:
        return dict(zip(names, processes.map(draw, names), strict=True))


def write_table(name: str, title: str, table: pd.DataFrame, out: Path) -> None:
    """Write a table as CSV, Markdown, LaTeX (with the rules of the package booktabs) and HTML.

    The CSV file has all rows. The other files have the first ones of a long table.
    """
    path = out / name
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    more, first = page.more_rows(name, table), table.head(page.SHOWN_ROWS)
    shown = first.astype(object).where(first.notna(), "")
    path.with_suffix(".md").write_text(
        shown.to_markdown(index=False, floatfmt=".4f") + "\n" + (f"\n{more}\n" if more else "")
    )
    path.with_suffix(".tex").write_text(
        first.to_latex(index=False, escape=True, na_rep="", float_format="%.4f") + (f"% {more}\n" if more else "")
    )
    path.with_suffix(".html").write_text(page.table_document(name, title, table))


def write_texts(sources: Sources, tables: Tables, facts: Mapping[str, Any], out: Path) -> None:
    """Write every table, the findings and the captions of a report: the same bytes on every machine.

    Args:
        sources: the sources of the report.
        tables: the tables of the report, by name.
        facts: the facts that the captions state, from `captions.report_facts`.
        out: the folder to write to.
    """
    titles = {name: title for _, name, title in contents(sources.config["grid"]["dataset"])}
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_table(name, titles[name], table, out)
    for name, text in captions.render(facts).items():
        (out / f"{name}.rst").write_text(text)


def write_report(sources: Sources, out: Path) -> None:
    """Write every table, caption and figure of a report, and the page that shows them all.

    Args:
        sources: the sources of the report.
        out: the folder to write to.
    """
    tables = make_tables(sources)
    facts = captions.report_facts(sources, tables)
    write_texts(sources, tables, facts, out)
    images = draw_figures(sources, tables, out)
    (out / PAGE).write_text(page.page(sources, tables, images, facts))


def write_page(sources: Sources, file: Path) -> None:
    """Write the page of a report alone. It holds all tables, captions and figures."""
    tables = make_tables(sources)
    images = draw_figures(sources, tables)
    html = page.page(sources, tables, images, captions.report_facts(sources, tables))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html)


def summary(sources: Sources) -> str:
    """Return in one sentence which study a report is about, and what is missing."""
    missing = sources.provenance["missing"]
    runs = sum(path.startswith("train/") for path in missing)
    if not missing:
        return f"the report of study {sources.config['study']!r}; nothing is missing"
    others = f", and {len(missing) - runs} evaluations of other models" if len(missing) > runs else ""
    return f"the report of study {sources.config['study']!r}, in which {runs} runs are missing{others}; it lists them"


def rebuild(folder: Path, out: Path) -> Sources:
    """Make every table, caption and figure of a report, and its page, from its source files.

    Args:
        folder: the report that holds `results.csv` and the other sources.
        out: where to write; may be the same folder.

    Returns:
        The sources.

    Raises:
        UserError: if a source file is missing, or if the report has another schema version.
    """
    sources = read_sources(folder)
    write_report(sources, out)
    return sources


def report(study: Study, results: Path, out: Path, logs: Path | None = None) -> Sources:
    """Write the sources of a report, and from them everything else; return the sources.

    Args:
        study: the configuration.
        results: the folder that the stages wrote into.
        out: the folder of the report.
        logs: the folder of the logs of the jobs, which say why a run is missing.
    """
    write_sources(collect(study, results, logs), out)
    return rebuild(out, out)
