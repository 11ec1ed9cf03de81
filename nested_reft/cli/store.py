"""The commands for the MLflow store: `tracking-store` and `track`."""

from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import Out
from nested_reft.errors import UserError


def tracking_store(
    uri: Annotated[str, typer.Option(help="Address of the MLflow store. An empty address disables MLflow.")],
    study: Annotated[str, typer.Option(help="Name of the study, which is the name of the MLflow experiment.")],
    out: Out,
) -> None:
    """Create the MLflow store, the experiment of a study and its parent run, before jobs write to them."""
    from nested_reft.records.files import write_json
    from nested_reft.records.mlflow_mirror import open_study, store_problem

    if uri:
        if problem := store_problem(uri):
            raise UserError(problem)
        open_study(uri, study)
    write_json(out, {"uri": uri or None, "study": study})


def track(
    results: Annotated[Path, typer.Argument(help="Folder with finished products of stages.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Folder with the reports of the studies.")] = Path("reports"),
    uri: Annotated[str, typer.Option(help="Address of the MLflow store.")] = "sqlite:///results/mlflow.db",
) -> None:
    """Rebuild the MLflow store from the files of the results, and from the reports if they exist."""
    if not results.is_dir():
        raise UserError(f"results folder {str(results)!r} does not exist; give the folder of a study")
    from nested_reft.records.mlflow_mirror import rebuild_store

    records, accepted = rebuild_store(results, reports, uri)
    typer.echo(f"{accepted} of {records} runs are in {uri}")
    if accepted < records:
        raise typer.Exit(1)
