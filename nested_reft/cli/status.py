"""The command `status`: how far a study is."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

SECONDS_BETWEEN_VIEWS = 5.0
CLEAR_SCREEN = "\033[H\033[2J"


def status(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML file of the study. Default: the study started last."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the status anew every 5 seconds until Ctrl-C.")] = False,
) -> None:
    """Show how far a study is: finished, running, failed and waiting jobs, and the time left.

    The command reads the files of the study in the current folder. It works while the study runs, after Ctrl-C, after
    a failure, and before the first start.
    """
    from nested_reft.config.study_file import read_study
    from nested_reft.study.jobs import job_paths
    from nested_reft.study.status import last_started, read_status
    from nested_reft.study.status_text import render

    here = Path()
    if config is None:
        name, paths = last_started(here)
    else:
        study = read_study(config)
        name, paths = study.study, job_paths(study)
    while True:
        now = time.time()
        found = read_status(here, name, paths, now)
        if watch and sys.stdout.isatty():
            typer.echo(CLEAR_SCREEN, nl=False)
        typer.echo(render(found, now))
        if not watch or found.is_complete:
            return
        time.sleep(SECONDS_BETWEEN_VIEWS)
        typer.echo()
