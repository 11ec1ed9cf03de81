"""The command line: every stage of a study, and tools to inspect, measure and maintain."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from nested_reft.cli import (
    bench,
    fetch,
    init,
    inspect,
    maintain,
    plan,
    power,
    report,
    results,
    run,
    stages,
    status,
    store,
)
from nested_reft.cli.failures import explain
from nested_reft.cli.logs import set_up_logging
from nested_reft.errors import DivergedError, PreemptedError, UserError
from nested_reft.processes import end_with_error, num_processes

HELP = """
Train a language model on problems with checkable answers by Nested-ReFT, and measure what it costs in accuracy and \
saves in time: roll-outs are sampled from the model itself with some of its layers skipped.

A study on your own problems takes three commands:

  nested-reft init mine --model embedded/tiny-28 --data problems.jsonl
  nested-reft run config/mine.yaml
  nested-reft report config/mine.yaml
"""
EPILOG = (
    "Exit codes: 0 for success, 1 for a failure, and 2 for a mistake in the options or the configuration, with one "
    "sentence that explains the mistake."
)

WHOLE_STUDY = "Run a study"
STAGES = "Stages, in the order of a study"
INSPECTION = "Inspection of models and completions"
MAINTENANCE = "Maintenance"

# The commands by group and name, in the order in which they are used. An empty group is `nested-reft` itself.
COMMANDS: list[tuple[str, str, Callable[..., None], str]] = [
    ("", "init", init.init, WHOLE_STUDY),
    ("", "fetch", fetch.fetch, WHOLE_STUDY),
    ("", "check", run.check, WHOLE_STUDY),
    ("", "plan", plan.plan, WHOLE_STUDY),
    ("", "power", power.power, WHOLE_STUDY),
    ("", "run", run.run, WHOLE_STUDY),
    ("", "status", status.status, WHOLE_STUDY),
    ("", "report", report.report, WHOLE_STUDY),
    ("", "verify", results.verify, WHOLE_STUDY),
    ("", "compare", results.compare, WHOLE_STUDY),
    ("prepare", "model", stages.prepare_model, STAGES),
    ("prepare", "gguf", stages.prepare_gguf, STAGES),
    ("prepare", "benchmarks", stages.prepare_benchmarks, STAGES),
    ("prepare", "dataset", stages.prepare_dataset, STAGES),
    ("", "sft", stages.sft, STAGES),
    ("", "train", stages.train, STAGES),
    ("", "evaluate", stages.evaluate, STAGES),
    ("", "measure-speed", stages.measure_speed, STAGES),
    ("", "analyse", stages.analyse, STAGES),
    ("", "layers", inspect.layers, INSPECTION),
    ("", "diagnose", inspect.diagnose, INSPECTION),
    ("", "gradients", inspect.gradients, INSPECTION),
    ("", "sample", results.sample, INSPECTION),
    ("", "replay", results.replay, INSPECTION),
    ("", "grade", inspect.grade, INSPECTION),
    ("", "export", results.export, INSPECTION),
    ("bench", "rollout", bench.bench_rollout, INSPECTION),
    ("bench", "train", bench.bench_train, INSPECTION),
    ("bench", "eval", bench.bench_eval, INSPECTION),
    ("bench", "vllm", bench.bench_vllm, INSPECTION),
    ("bench", "grade", bench.bench_grade, INSPECTION),
    ("bench", "scale", bench.bench_scale, INSPECTION),
    ("bench", "plan", bench.bench_plan, INSPECTION),
    ("bench", "figure", bench.bench_figure, INSPECTION),
    ("", "tracking-store", store.tracking_store, MAINTENANCE),
    ("", "server", store.server, MAINTENANCE),
    ("", "ui", store.ui, MAINTENANCE),
    ("", "track", store.track, MAINTENANCE),
    ("", "schema", maintain.schema, MAINTENANCE),
    ("", "pretrain", maintain.pretrain, MAINTENANCE),
]
GROUPS = {
    "prepare": typer.Typer(no_args_is_help=True, help="Fetch or generate models, training sets and benchmarks."),
    "bench": typer.Typer(no_args_is_help=True, help="Measure the speed of sampling, training and grading."),
}


class OrderedGroup(TyperGroup):
    """Lists the commands in the order of COMMANDS; typer would list groups of commands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands and groups."""
        return list(dict.fromkeys(group or name for group, name, *_ in COMMANDS))


class PlainCommand(TyperCommand):
    """A command with help in plain text; the tables of typer cut the names of options at 80 columns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"rich_markup_mode": None}))


app = typer.Typer(
    cls=OrderedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group, name, function, panel in COMMANDS:
    (GROUPS[group] if group else app).command(
        name,
        cls=PlainCommand,
        rich_help_panel=None if group else panel,
        # `run` passes on options that it does not know to Snakemake
        context_settings={"ignore_unknown_options": True} if name == "run" else None,
    )(function)
app.add_typer(GROUPS["prepare"], name="prepare", rich_help_panel=STAGES)
app.add_typer(GROUPS["bench"], name="bench", rich_help_panel=INSPECTION)


def print_version(wanted: bool) -> None:
    """Print the version and end the program if the user asks for it."""
    if wanted:
        from nested_reft import __version__

        typer.echo(f"nested-reft {__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log details, including messages of the libraries.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Write messages to standard error, which the rules redirect to the log file of the job."""
    set_up_logging(verbose)


def main() -> None:
    """Run the command line. A mistake of the user ends it with one sentence and exit code 2.

    A full disk, too little GPU memory and a training that diverges end it with one sentence and exit code 1. A signal
    after which a stage is resumable ends it with one sentence and 128 plus the number of the signal.
    """
    try:
        app()
    except UserError as error:
        end_with_error(error, str(error), 2)
    except DivergedError as error:
        end_with_error(error, str(error), 1)
    except PreemptedError as error:
        end_with_error(error, str(error), error.exit_code)
    except Exception as error:
        sentence = explain(error)
        if sentence is None and num_processes() == 1:
            raise
        end_with_error(error, sentence, 1)
