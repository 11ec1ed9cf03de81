"""The commands for the MLflow store: `tracking-store`, `track` and `ui`."""

import signal
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import Out
from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError


def tracking_store(
    uri: Annotated[str, typer.Option(help="Address of the MLflow store. An empty address disables MLflow.")],
    study: Annotated[str, typer.Option(help="Name of the study, which is the name of the MLflow experiment.")],
    out: Out,
    report_to: Annotated[list[str] | None, typer.Option(help="Another tracker of the study; can be repeated.")] = None,
) -> None:
    """Create the MLflow store, the experiment of a study and its parent run, before jobs write to them."""
    from nested_reft.records.files import write_json
    from nested_reft.records.mlflow_mirror import open_study, store_problem
    from nested_reft.records.trackers import trackers_problem

    trackers = report_to or []
    if problem := trackers_problem(trackers) or (store_problem(uri) if uri else None):
        raise UserError(problem)
    if uri:
        open_study(uri, study)
    write_json(out, {"uri": uri or None, "study": study, "report_to": trackers})


def track(
    results: Annotated[Path, typer.Argument(help="Folder with finished products of stages.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Folder with the reports of the studies.")] = Path("reports"),
    uri: Annotated[str, typer.Option(help="Address of the MLflow store.")] = "sqlite:///results/mlflow.db",
) -> None:
    """Rebuild the MLflow store from the files of the results, and from the reports if they exist."""
    if not results.is_dir():
        raise UserError(f"results folder {str(results)!r} does not exist; give the folder of a study")
    from nested_reft.records.mlflow_mirror import store_problem
    from nested_reft.records.mlflow_report import rebuild_store

    if problem := store_problem(uri):
        raise UserError(problem)

    records, accepted = rebuild_store(results, reports, uri)
    typer.echo(f"{accepted} of {records} runs are in {uri}")
    if accepted < records:
        raise typer.Exit(1)


def store_of(config: Path | None) -> str:
    """Return the address of the store: that of the environment, else that of the study, else the default.

    Raises:
        UserError: the study has no store.
    """
    from nested_reft.records.mlflow_mirror import tracking_uri

    if uri := tracking_uri(None):
        return uri
    if config is None:
        return "sqlite:///results/mlflow.db"
    uri = read_study(config).tracking.uri
    if uri is None:
        raise UserError(f"tracking.uri is null in {config}, so the study has no MLflow store; name a store there")
    return uri


def ui(
    config: Annotated[Path | None, typer.Argument(help="YAML file of the study whose store is shown.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 5000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the runs of the newest study.")] = False,
) -> None:
    """Serve MLflow's UI on this machine, and print the address of each study's runs, the newest study first."""
    from nested_reft.records import mlflow_ui

    uri = store_of(config)
    mlflow_ui.check_store(uri)
    if uri.startswith("http"):  # a server shows this store already
        addresses, server = mlflow_ui.study_addresses(uri, uri), None
    else:
        mlflow_ui.check_port(port)
        addresses = mlflow_ui.study_addresses(uri, f"http://127.0.0.1:{port}")
        server = mlflow_ui.serve(uri, port)
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    for study, address in addresses.items():
        typer.echo(f"Runs of {study}: {address}")
    if open_browser and addresses:
        webbrowser.open(next(iter(addresses.values())))
    if server:
        typer.echo("MLflow runs until Ctrl-C.")
        try:
            raise typer.Exit(server.wait())
        except KeyboardInterrupt:  # the server has received it, too
            server.wait()
