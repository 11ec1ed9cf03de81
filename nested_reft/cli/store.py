"""The commands for the MLflow store: `tracking-store`, `track`, `ui` and `server`."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nested_reft.cli.options import Out
from nested_reft.config.sections import Tracking
from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError

if TYPE_CHECKING:
    from subprocess import Popen

DEFAULT_STORE = str(Tracking().uri)


def tracking_store(
    uri: Annotated[str, typer.Option(help="Address of the MLflow store. An empty address disables MLflow.")],
    study: Annotated[str, typer.Option(help="Name of the study, which is the name of the MLflow experiment.")],
    out: Out,
    report_to: Annotated[list[str] | None, typer.Option(help="Another tracker of the study; can be repeated.")] = None,
) -> None:
    """Create the MLflow store, the experiment of a study and its parent run, before jobs write to them."""
    from nested_reft.records.files import write_json
    from nested_reft.records.mlflow_mirror import open_study, shared_store_problem
    from nested_reft.records.trackers import trackers_problem

    trackers = report_to or []
    if problem := trackers_problem(trackers) or (shared_store_problem(uri) if uri else None):
        raise UserError(problem)
    if uri:
        open_study(uri, study)
    write_json(out, {"uri": uri or None, "study": study, "report_to": trackers})


def track(
    results: Annotated[Path, typer.Argument(help="Folder with finished products of stages.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Folder with the reports of the studies.")] = Path("reports"),
    uri: Annotated[
        str | None,
        typer.Option(help=f"Address of the MLflow store (default: MLFLOW_TRACKING_URI, else {DEFAULT_STORE})."),
    ] = None,
) -> None:
    """Rebuild the MLflow store from the files of the results, and from the reports if they exist."""
    if not results.is_dir():
        raise UserError(f"results folder {str(results)!r} does not exist; give the folder of a study")
    from nested_reft.records.mlflow_mirror import store_problem, tracking_uri
    from nested_reft.records.mlflow_report import rebuild_store

    uri = uri or tracking_uri(DEFAULT_STORE)
    assert uri is not None
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
        return DEFAULT_STORE
    uri = read_study(config).tracking.uri
    if uri is None:
        raise UserError(f"tracking.uri is null in {config}, so the study has no MLflow store; name a store there")
    return uri


Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")]


def wait_for(server: "Popen[bytes]") -> None:
    """Wait until the server ends, which Ctrl-C and SIGTERM bring about."""
    typer.echo("MLflow runs until Ctrl-C.")
    try:
        raise typer.Exit(server.wait())
    except KeyboardInterrupt:  # the server has received it, too
        server.wait()


def ui(
    config: Annotated[Path | None, typer.Argument(help="YAML file of the study whose store is shown.")] = None,
    port: Port = 5000,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the runs of the study, or of the newest one.")
    ] = False,
) -> None:
    """Serve MLflow's UI on this machine, and print the address of each study's runs, the named or newest first."""
    from nested_reft.records import mlflow_ui

    uri = store_of(config)
    mlflow_ui.check_store(uri)
    if uri.startswith("http"):  # a server shows this store already
        addresses, server = mlflow_ui.study_addresses(uri, uri), None
    else:
        mlflow_ui.check_port(port)
        addresses = mlflow_ui.study_addresses(uri, f"http://127.0.0.1:{port}")
        server = mlflow_ui.serve(uri, port)
    named = read_study(config).study if config else ""
    addresses = dict(sorted(addresses.items(), key=lambda entry: entry[0] != named))  # the others stay in their order
    for study, address in addresses.items():
        typer.echo(f"Runs of {study}: {address}")
    if open_browser and addresses:
        webbrowser.open(next(iter(addresses.values())))
    if server:
        wait_for(server)


def server(
    store: Annotated[str, typer.Option(help="Address of the database, which is created if it does not exist.")] = (
        DEFAULT_STORE
    ),
    port: Port = 5000,
) -> None:
    """Start an MLflow server on this machine, to which several jobs can write at once, and print how to use it."""
    from nested_reft.records import mlflow_ui
    from nested_reft.records.mlflow_mirror import local_artifacts, store_problem

    if problem := store_problem(store):
        raise UserError(problem)
    mlflow_ui.check_port(port)
    if artifacts := local_artifacts(store):
        artifacts.mkdir(parents=True, exist_ok=True)
    running = mlflow_ui.serve(store, port)
    typer.echo(f"MLflow serves {store}. Start studies of this machine after")
    typer.echo(f"  export MLFLOW_TRACKING_URI=http://127.0.0.1:{port}")
    wait_for(running)
