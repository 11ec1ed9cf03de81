"""Nested-ReFT: reinforced fine-tuning with roll-outs from a layer-skipped copy of the model itself.

Every stage of a study is a sub-command that can be pasted into a terminal as Snakemake prints it. Exit codes: 0 done,
1 failed, 2 bad usage or configuration, with one sentence that says what to correct.
"""

import logging
import sys

import typer

from nested_reft.cli import bench, inspect, maintain, stages, store
from nested_reft.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

# In the order in which a study runs them, then those for people.
prepare_app = typer.Typer(no_args_is_help=True, help="Fetch or generate models, training sets and benchmarks.")
prepare_app.command("model")(stages.prepare_model)
prepare_app.command("benchmarks")(stages.prepare_benchmarks)
prepare_app.command("dataset")(stages.prepare_dataset)
app.command("tracking-store")(store.tracking_store)
app.add_typer(prepare_app, name="prepare")
app.command("sft")(stages.sft)
app.command("train")(stages.train)
app.command("evaluate")(stages.evaluate)
app.command("analyse")(stages.analyse)
app.command("track")(store.track)

app.command("layers")(inspect.layers)
app.command("diagnose")(inspect.diagnose)
app.command("grade")(inspect.grade)

bench_app = typer.Typer(no_args_is_help=True, help="Measure speed.")
bench_app.command("rollout")(bench.bench_rollout)
bench_app.command("train")(bench.bench_train)
bench_app.command("eval")(bench.bench_eval)
bench_app.command("grade")(bench.bench_grade)
bench_app.command("figure")(bench.bench_figure)
app.add_typer(bench_app, name="bench")

app.command("schema")(maintain.schema)
app.command("pretrain")(maintain.pretrain)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
