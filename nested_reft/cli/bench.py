"""The sub-commands of `nested-reft bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nested_reft.cli.options import SkipRatios, apply_resource_limits, read_ratios
from nested_reft.errors import UserError


def bench_grade(
    benchmarks: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file of `prepare benchmarks`, to measure on too."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how many answers a second are graded, in one process."""
    from nested_reft.bench import grading, harness

    results = grading.bench_grade(benchmarks, repeats)
    if as_json:
        typer.echo(harness.as_json(results))
        return
    for name, rate in results.items():
        typer.echo(
            f"{name}: {rate['median']:,.0f} a second ({rate['lowest']:,.0f} to {rate['highest']:,.0f} "
            f"in {repeats} repeats of {rate['rows']:,.0f})"
        )


def check_folder(path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before minutes are spent on what it is to hold.

    Raises:
        UserError: if its folder is not there.
    """
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: {path.parent} is no folder; make it, or give another one")
    return path


Measured = Annotated[
    str, typer.Argument(help="A model folder, embedded/<name>, or, with random weights, qwen2.5-1.5b or qwen2.5-7b.")
]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts sampled at once.")]
Generations = Annotated[int, typer.Option(min=2, help="Completions of each prompt.")]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens of a completion.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; by default what it takes.")]
Pairs = Annotated[int, typer.Option(min=1, help="Rounds, in each of which every variant runs once.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", dir_okay=False, callback=check_folder, help="Where to write everything, raw samples too."),
]
Dtype = Annotated[str, typer.Option(help="Type of the weights: float32 or bfloat16.")]


def set_bench_threads(threads: int | None) -> None:
    """Prepare the process for a measurement."""
    apply_resource_limits()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def tell(results: dict[str, Any], table: str, path: Path | None) -> None:
    """Print a measurement and, if a path is given, write it."""
    from nested_reft.records.files import write_json

    typer.echo(table)
    if path is not None:
        write_json(path, results)


def bench_rollout(
    model: Measured,
    prompts: Prompts = 4,
    generations: Generations = 8,
    prompt_length: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 32,
    new_tokens: NewTokens = 64,
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    threads: Threads = None,
    dtype: Dtype = "float32",
    pairs: Pairs = 20,
    sampler: Annotated[str, typer.Option(help="The engine: engine or engine-compiled.")] = "engine-compiled",
    json_path: Json = None,
) -> None:
    """Measure roll-outs: the engine against `generate`, and what skipping layers gains."""
    ratios = read_ratios(skip_ratios)
    if dtype not in ("float32", "bfloat16") or sampler not in ("engine", "engine-compiled"):
        raise UserError(
            f"--dtype is {dtype!r} and --sampler {sampler!r}; give float32 or bfloat16, and engine or engine-compiled"
        )
    set_bench_threads(threads)
    from nested_reft.bench import display as bench_report
    from nested_reft.bench import rollout as bench_rollout

    settings = bench_rollout.Settings(
        model, ratios, prompts, generations, prompt_length, new_tokens, dtype, sampler, pairs
    )
    results = bench_rollout.measure_rollout(settings)
    tell(results, bench_report.rollout_table(results), json_path)


def bench_train(
    model: Measured,
    prompts: Prompts = 4,
    generations: Generations = 8,
    new_tokens: NewTokens = 64,
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    threads: Threads = None,
    dtype: Dtype = "float32",
    pairs: Pairs = 20,
    peak_memory: Annotated[
        bool, typer.Option("--peak-memory", help="Run each variant once more, in a process of its own.")
    ] = False,
    json_path: Json = None,
) -> None:
    """Measure whole optimizer steps: stock TRL, and Nested-ReFT by sampler and skip ratio."""
    ratios = read_ratios(skip_ratios)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype is {dtype!r}; give float32 or bfloat16")
    set_bench_threads(threads)
    from nested_reft.bench import display as bench_report
    from nested_reft.bench import rollout as bench_rollout
    from nested_reft.bench import train as bench_train

    settings = bench_rollout.Settings(
        model, ratios, prompts=prompts, generations=generations, new_tokens=new_tokens, dtype=dtype, pairs=pairs
    )
    results = bench_train.measure_train(settings, peak_memory)
    tell(results, bench_report.train_table(results), json_path)


def bench_eval(
    model: Measured,
    problems: Annotated[int, typer.Option(min=1, help="Problems of an evaluation.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems answered at once.")] = 100,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a completion, at most.")] = 64,
    threads: Threads = None,
    pairs: Pairs = 20,
    json_path: Json = None,
) -> None:
    """Measure evaluation, by sampler: generated problems, answered greedily until they end."""
    set_bench_threads(threads)
    from nested_reft.bench import display as bench_report
    from nested_reft.bench import evaluate as bench_eval

    settings = bench_eval.Settings(model, problems, batch_size, new_tokens, pairs=pairs)
    results = bench_eval.measure_eval(settings)
    tell(results, bench_report.eval_table(results), json_path)


def bench_figure(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="What `bench rollout` wrote.")],
    out: Annotated[
        Path, typer.Option(callback=check_folder, help="The figure, without its ending; SVG and PNG are written.")
    ],
) -> None:
    """Draw measurements of roll-outs, one row for each file."""
    from nested_reft.bench import display as bench_report
    from nested_reft.records.files import read_json
    from nested_reft.report import figures as plots

    results = []
    for path in files:
        try:
            results.append(read_json(path))
            is_one = results[-1]["bench"] == "rollout"
        except (ValueError, KeyError, TypeError):
            is_one = False
        if not is_one:
            raise UserError(f"{path} was not written by `bench rollout`; give such files alone")
    plots.save(bench_report.speed_figure(results), out)
