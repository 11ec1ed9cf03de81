"""Sub-commands for the MLflow store: `tracking-store` and `track`."""

from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import Out
from nested_reft.errors import UserError


def tracking_store(
    uri: Annotated[str, typer.Option(help="The MLflow store; empty for none.")],
    study: Annotated[str, typer.Option(help="The experiment.")],
    out: Out,
) -> None:
    """Create the MLflow store, the study's experiment and its parent run, once, before jobs track into them."""
    from nested_reft.records.files import write_json
    from nested_reft.records.mlflow_mirror import open_study

    if uri:
        try:
            open_study(uri, study)
        except Exception as error:
            typer.echo(f"MLflow at {uri} cannot be opened ({error}); the study runs without it", err=True)
    write_json(out, {"uri": uri or None, "study": study})


def track(
    results: Annotated[Path, typer.Argument(help="Folder that holds finished stage products.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Folder that holds the studies' reports.")] = Path("reports"),
    uri: Annotated[str, typer.Option(help="The MLflow store to rebuild.")] = "sqlite:///results/mlflow.db",
) -> None:
    """Rebuild the MLflow store from the files under `results`, and from the reports if they are there."""
    if not results.is_dir():
        raise UserError(f"results folder {str(results)!r} does not exist; give the folder of a study")
    from nested_reft.records.mlflow_mirror import rebuild

    records, taken = rebuild(results, reports, uri)
    typer.echo(f"{taken} of {records} runs are in {uri}")
    if taken < records:
        raise typer.Exit(1)
