"""The commands that start a whole study: `check` and `run`."""

import os
from pathlib import Path
from typing import Annotated

import typer

Changes = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Changes of keys, such as training.max_steps=3.")
]


def check(
    config: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    changes: Changes = None,
    executor: Annotated[
        str, typer.Option(help="Executor of Snakemake. With another one than `local`, no GPU is looked for here.")
    ] = "local",
) -> None:
    """Check a study without starting it: keys, models, data, GPU, MLflow store and disk space. List all problems."""
    from nested_reft.config.study_file import read_study
    from nested_reft.study.check import check_study, describe_size, unfinished_work

    study = read_study(config, changes or [])
    checked = check_study(study, Path.cwd(), unfinished_work(study, Path.cwd(), executor == "local"))
    for problem in checked.problems:
        typer.echo(f"Error: {problem}", err=True)
    if checked.problems:
        raise typer.Exit(2)
    width = max(len(subject) for subject, _ in checked.found)
    typer.echo(f"The study {study.study!r} can start: {describe_size(study)}.")
    for subject, found in checked.found:
        typer.echo(f"  {subject:{width}}  {found}")


def run(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="config key=value option",
            help="YAML file of the study (default: the embedded study), changes of keys such as training.max_steps=3, "
            "and any targets and options of snakemake, such as --cores 2 (default: all cores) or -n for a dry run.",
        ),
    ] = None,
) -> None:
    """Run a study, or continue it, by Snakemake; its files are in the current folder."""
    from nested_reft.study.run import snakemake_command

    command = snakemake_command([*(arguments or []), *context.args])
    os.execv(command[0], command)
