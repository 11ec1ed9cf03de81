"""The page of a report: one HTML file with the answer, every table and every figure, which needs no network.

The page is a function of the sources, the tables, the figures and the facts that the captions state. Its HTML is in
the templates of the folder `templates`.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from docutils.core import publish_parts
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nested_reft.report import captions
from nested_reft.report.contents import contents
from nested_reft.report.glossary import GLOSSARY
from nested_reft.report.rounding import is_p
from nested_reft.report.sources import Sources

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
# Columns that the page leaves out so that a table can be read at once. The CSV of the table has them.
LEFT_OUT = {
    "deltas": [
        *("num_skipped", "seeds", "covers", "relative_ci_low", "relative_ci_high", "standard_error", "p"),
        "p_equivalent",
    ],
    "trend": ["p_equivalent"],
    "efficiency": ["num_skipped", "seeds", "bound_with_lm_head", "speed_source"],
    "stages": ["interval"],
}
HEADINGS = {
    "p_holm": "p (Holm)",
    "p_equivalent": "p, equivalent",
    "p_equivalent_holm": "p, equivalent (Holm)",
    "slope": "change per 10% of the layers",
    "token_speed_tok_s": "tokens/s",
    "token_speed_tok_s_relative_delta": "tokens/s, change",
    "generated_tok_s": "sampled tokens/s",
    "train_runtime_s": "run time, s",
    "train_runtime_s_relative_delta": "run time, change",
}
# The figure of the first screen, and its form for a phone.
LEAD, NARROW_LEAD = "forest", "forest_narrow"
# A longer table would make the page too large for a browser. Its CSV file has all rows.
SHOWN_ROWS = 1000

# Columns of accuracies, in percent, and of their deltas, in points, by the name of the table. An interval has the unit
# of its estimate. The files of a table hold shares.
PERCENT, POINTS = "%", "points"
UNITS: dict[str, dict[str, str]] = {
    "deltas": {"baseline": PERCENT, "instance": PERCENT, "absolute_delta": POINTS},
    "efficiency": {"accuracy_delta": POINTS},
    "stages": {"accuracy": PERCENT},
    "noise": dict.fromkeys(["seed", "choice_of_problems", "seed_x_problem", "sampling", "total"], PERCENT),
    "trend": {"slope": POINTS, "delta": POINTS},
    "table2": {"best_delta": POINTS, "worst_delta": POINTS, "best_by_chance": POINTS},
    "table2_paper": {"best_delta": POINTS, "worst_delta": POINTS},
}

# ---- texts --------------------------------------------------------------------------------------------

TERMS = {term.lower(): f"term-{re.sub(r'[^a-z]+', '-', term.lower())}" for term in GLOSSARY}
LONGEST_FIRST = "|".join(re.escape(term) for term in sorted(TERMS, key=len, reverse=True))
# A piece of code or a tag, which are left unchanged, or a term of the glossary.
TERM = re.compile(rf'<span class="pre">.*?</span>|<[^>]*>|\b({LONGEST_FIRST})s?\b', re.IGNORECASE)


def link_terms(markup: str) -> str:
    """Link the first occurrence of each term of the glossary to its explanation."""
    linked = set()

    def link(match: re.Match[str]) -> str:
        term = (match[1] or "").lower()
        if not term or term in linked:
            return match[0]
        linked.add(term)
        return f'<a class="term" href="#{TERMS[term]}">{match[0]}</a>'

    return TERM.sub(link, markup)


def html(text: str) -> Markup:
    """Return reStructuredText as HTML, with links to the glossary."""
    settings = {"doctitle_xform": False, "raw_enabled": False, "file_insertion_enabled": False}
    body = publish_parts(text, writer="html5", settings_overrides=settings)["body"]  # docutils escapes the text
    return Markup(link_terms(body))  # noqa: S704


def date(time: str) -> str:
    """Return the day of an ISO 8601 time, as in `24 November 2026`."""
    return f"{datetime.fromisoformat(time):%-d %B %Y}"


# ---- tables -------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell of a table: its text, and the value by which its column is sorted."""

    text: str
    order: str
    is_number: bool


def rounded(column: str, value: Any, unit: str = "") -> str:
    """Return a value as a table shows it: shares as percentages, deltas with a sign, three significant digits.

    Args:
        column: the column of the table.
        value: the value.
        unit: PERCENT for an accuracy, POINTS for a delta of accuracies, or nothing.
    """
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    if unit:
        return captions.points(value) if unit == POINTS else f"{100 * value:.1f}"
    if column.endswith("skip_ratio"):
        return f"{100 * value:g}%"
    sign = "+" if "delta" in column else ""
    if "relative" in column:
        return f"{100 * value:{sign}.1f}%"
    if is_p(column):
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign}.{decimals}f}"


def table_columns(table: pd.DataFrame, units: Mapping[str, str]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield (heading, cells) of every column; the two ends of an interval share a column.

    Args:
        table: the table.
        units: column -> its unit, PERCENT or POINTS, for columns of accuracies.
    """
    estimate = ""  # the column that an interval belongs to
    for column in table:
        name = str(column)
        if name.endswith("ci_high"):
            continue
        values, heading, unit = table[column], HEADINGS.get(name, name.replace("_", " ")), units.get(name, "")
        texts = [rounded(name, value, unit) for value in values]
        if name.endswith("ci_low"):
            heading, unit = name.removesuffix("ci_low").replace("_", " ") + "interval", units.get(estimate, "")
            ends = zip(values, table[f"{name.removesuffix('low')}high"], strict=True)
            texts = [
                "" if pd.isna(low) else f"[{rounded(estimate, low, unit)}, {rounded(estimate, high, unit)}]"
                for low, high in ends
            ]
        elif not name.endswith("paper_form"):
            estimate = name
        orders = ["" if pd.isna(value) else str(value) for value in values]
        yield (
            f"{heading}, {unit}" if unit else heading,
            [
                Cell(text, order, not (isinstance(value, str) or pd.isna(value)))
                for text, order, value in zip(texts, orders, values, strict=True)
            ],
        )


def more_rows(name: str, table: pd.DataFrame) -> str:
    """Return a sentence on the rows that are not shown of a long table, or an empty text."""
    if len(table) <= SHOWN_ROWS:
        return ""
    return f"These are the first {SHOWN_ROWS:,} of {len(table):,} rows; {name.removesuffix('-of-speeds')}.csv has all."


def table_view(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return what the template of a table needs: its headings, its first rows as cells, and the same rows as CSV."""
    shown = table.drop(columns=LEFT_OUT.get(name.removesuffix("-of-speeds"), []))
    if "border" in shown and shown["border"].nunique() == 1:
        shown = shown.drop(columns="border")
    if "metric" in shown:
        shown = shown.assign(metric=shown["metric"].replace(HEADINGS))
    units = UNITS.get(name, {})
    columns = list(table_columns(shown.head(SHOWN_ROWS), units))
    csv = table.head(SHOWN_ROWS).to_csv(index=False, float_format="%.6g")
    return {
        "name": name,
        "headings": [(heading, any(cell.is_number for cell in cells)) for heading, cells in columns],
        "rows": list(zip(*(cells for _, cells in columns), strict=True)),
        "more_rows": more_rows(name, table),
        "csv": f"data:text/csv;charset=utf-8,{quote(csv)}",
        "has_percent": bool(units),
    }


def table_views(name: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the views of a table: one, or two for the deltas, so that accuracies are not sorted among speeds."""
    if name != "deltas":
        return [table_view(name, table)]
    is_accuracy = table["metric"] == "accuracy"
    return [table_view(name, table[is_accuracy]), table_view("deltas-of-speeds", table[~is_accuracy])]


def table_document(name: str, title: str, table: pd.DataFrame) -> str:
    """Return one table as an HTML document of its own, which Snakemake's report shows in place."""
    return TEMPLATES.get_template("table.html.j2").render(title=title, views=table_views(name, table))


# ---- figures and the whole page -----------------------------------------------------------------------


def figure_view(name: str, svg: str, narrow: str = "") -> dict[str, Any]:
    """Return what the template of a figure needs: an address that holds the image, and its width in pixels.

    Args:
        name: the name of the figure.
        svg: the figure.
        narrow: the same figure for the screen of a phone, if there is one.
    """
    width = re.search(r'<svg [^>]*?width="([\d.]+)pt"', svg, re.DOTALL)
    assert width, f"{name} is not a figure of matplotlib"
    image = f"data:image/svg+xml,{quote(svg, safe=' /:;,=()+-')}"
    view = {"name": name, "image": image, "width": round(float(width[1]) * 4 / 3)}
    # A browser splits the addresses of `srcset` at white space and commas.
    return view | {"narrow": f"data:image/svg+xml,{quote(narrow)}" if narrow else ""}


def page(
    sources: Sources, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, str], facts: Mapping[str, Any]
) -> str:
    """Return the page of a report as one HTML text.

    Args:
        sources: the sources of the report.
        tables: the tables of the report, by name.
        figures: the figures of the report as SVG, by name, or the reason why a figure could not be drawn; also
            NARROW_LEAD, the figure of the first screen for a phone.
        facts: the facts that the captions state, from `captions.report_facts`.
    """
    # The answer and the summary say once that a model was pretrained with layer dropout, and so does each figure.
    captioned = {**facts, "layer_dropout_models": []}
    sections: dict[str, list[dict[str, Any]]] = {}
    for section, name, title in contents(sources.config["grid"]["dataset"]):
        caption = "figure" if name.startswith("figure_") else name
        item: dict[str, Any] = {"title": title, "caption": html(captions.text(f"caption_{caption}", captioned))}
        if name in tables:
            item["tables"] = table_views(name, tables[name])
        elif "<svg" in figures[name]:
            item["figure"] = figure_view(name, figures[name], figures[NARROW_LEAD] if name == LEAD else "")
        else:
            item["reason"] = figures[name]
        sections.setdefault(section, []).append(item)
    first = next(item for item in sections["Findings"] if item.get("figure", {}).get("name") == LEAD)
    sections["Findings"].remove(first)
    parts = ("answer", "words", "missing", "samplers", "found", "inconclusive", "study")
    return TEMPLATES.get_template("page.html.j2").render(
        facts,
        date=date(sources.provenance["last_finished"]),
        lead=first,
        sections=sections,
        glossary={term: (TERMS[term.lower()], meaning) for term, meaning in GLOSSARY.items()},
        **{f"{part}_text": html(captions.text(f"_{part}", facts)) for part in parts},
    )
