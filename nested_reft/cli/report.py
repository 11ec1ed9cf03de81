"""The command for readers of results: `report`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import check_out_folder
from nested_reft.errors import UserError


def check_out(out: Path) -> None:
    """Refuse a file that cannot be written, before the figures are drawn.

    Raises:
        UserError: the path is a folder, or the folder that it is in cannot be written to.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, as in --out {out / 'report.html'}")
    check_out_folder(out.absolute().parent)
    if out.exists() and not os.access(out, os.W_OK):
        raise UserError(f"--out {out} cannot be written for lack of permission; name another file")


def report(
    study: Annotated[
        Path | None,
        typer.Argument(help="YAML file of a study, or the folder of its report. Without it, the study run last."),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write the report of a study as one HTML file, which needs no network; runs may be missing."""
    from nested_reft.report import build, locate

    check_out(out)
    sources = locate.find_sources(study or locate.newest_study())
    build.write_page(sources, out)
    typer.echo(f"{out}: {build.summary(sources)}")
