"""The command for readers of results: `report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    study: Annotated[
        Path | None,
        typer.Argument(help="YAML file of a study, or the folder of its report. Without it, the study run last."),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write the report of a study as one HTML file, which needs no network; runs may be missing."""
    from nested_reft.report import build, locate

    sources = locate.find_sources(study or locate.newest_study())
    build.write_page(sources, out)
    typer.echo(f"{out}: {build.summary(sources)}")
