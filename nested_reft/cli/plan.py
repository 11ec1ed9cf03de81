"""The command `plan`: what a study costs, before it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.bench import check_folder
from nested_reft.cli.run import Changes


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    changes: Changes = None,
    card: Annotated[
        list[str] | None,
        typer.Option(
            help="The card that jobs run on, such as h100, or MODEL=h100 for the jobs of one model; may be repeated."
        ),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="GPUs that work at the same time; on a CPU, jobs.")] = 1,
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="File that a command of `bench` wrote on the card; may be repeated."
        ),
    ] = None,
    pilot: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Report of a finished study, for the variances of a delta."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option(callback=check_folder, help="Draw where the hours go: a path, of which SVG and PNG are written."),
    ] = None,
) -> None:
    """Plan a study without starting it: jobs, memory, time, disk, and the smallest delta that it can resolve.

    Nothing is downloaded, and nothing is refused: a job that does not fit its card is a warning that says what would
    make it fit.
    """
    from nested_reft.config.study_file import read_study
    from nested_reft.plan import text
    from nested_reft.plan.plan import make_plan
    from nested_reft.plan.planner import cards_of
    from nested_reft.plan.resolution import DEFAULT_PILOT, read_pilot

    study = read_study(config, changes or [])
    cards = cards_of(study, card or [])
    found = make_plan(study, cards, bench, read_pilot(pilot) if pilot else DEFAULT_PILOT, at_once)
    typer.echo(json.dumps(text.as_dict(found), indent=2) if as_json else text.render(found))
    if figure is not None:
        from nested_reft.report import style

        style.save(text.hours_figure(found), figure.with_suffix(""))
