"""The command line: every stage of a study, and tools to inspect, measure and maintain."""

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from nested_reft.cli import bench, inspect, maintain, stages, store
from nested_reft.errors import UserError

HELP = (
    "Nested-ReFT: reinforced fine-tuning with roll-outs from a layer-skipped copy of the model itself.\n\n"
    "Snakemake runs each stage of a study by one of these commands. The same command can be run by hand.\n\n"
    "Exit codes: 0 for success, 1 for a failure, and 2 for a mistake in the options or the configuration, with one "
    "sentence that explains the mistake."
)

STUDY = "Stages, in the order of a study"
INSPECTION = "Inspection of models and completions"
MAINTENANCE = "Maintenance"

# The commands by group and name, in the order in which a study runs them. An empty group is `nested-reft` itself.
COMMANDS: list[tuple[str, str, Callable[..., None], str]] = [
    ("prepare", "model", stages.prepare_model, STUDY),
    ("prepare", "benchmarks", stages.prepare_benchmarks, STUDY),
    ("prepare", "dataset", stages.prepare_dataset, STUDY),
    ("", "tracking-store", store.tracking_store, STUDY),
    ("", "sft", stages.sft, STUDY),
    ("", "train", stages.train, STUDY),
    ("", "evaluate", stages.evaluate, STUDY),
    ("", "analyse", stages.analyse, STUDY),
    ("", "layers", inspect.layers, INSPECTION),
    ("", "diagnose", inspect.diagnose, INSPECTION),
    ("", "grade", inspect.grade, INSPECTION),
    ("bench", "rollout", bench.bench_rollout, INSPECTION),
    ("bench", "train", bench.bench_train, INSPECTION),
    ("bench", "eval", bench.bench_eval, INSPECTION),
    ("bench", "grade", bench.bench_grade, INSPECTION),
    ("bench", "figure", bench.bench_figure, INSPECTION),
    ("", "track", store.track, MAINTENANCE),
    ("", "schema", maintain.schema, MAINTENANCE),
    ("", "pretrain", maintain.pretrain, MAINTENANCE),
]
GROUPS = {
    "prepare": typer.Typer(no_args_is_help=True, help="Fetch or generate models, training sets and benchmarks."),
    "bench": typer.Typer(no_args_is_help=True, help="Measure the speed of sampling, training and grading."),
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group, name, function, panel in COMMANDS:
    (GROUPS[group] if group else app).command(name, rich_help_panel=None if group else panel)(function)
app.add_typer(GROUPS["prepare"], name="prepare", rich_help_panel=STUDY)
app.add_typer(GROUPS["bench"], name="bench", rich_help_panel=INSPECTION)


def print_version(wanted: bool) -> None:
    """Print the version and end the program if the user asks for it."""
    if wanted:
        from nested_reft import __version__

        typer.echo(f"nested-reft {__version__}")
        raise typer.Exit


@app.callback()
def set_up_logging(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log details, including messages of the libraries.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Write messages to standard error, which the rules redirect to the log file of the job."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.getLogger("nested_reft").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Run the command line. A mistake of the user ends it with one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
