"""The sub-commands of `nested-reft bench`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nested_reft.cli.options import SkipRatios, apply_resource_limits, read_ratios
from nested_reft.errors import UserError


def check_folder(path: Path | None) -> Path | None:
    """Refuse an output path that cannot be written, before minutes of measurement.

    Raises:
        UserError: if the folder of the path does not exist.
    """
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: {path.parent} is not a folder; create it, or choose another path")
    return path


Measured = Annotated[
    str, typer.Argument(help="A model folder, embedded/<name>, or, with random weights, qwen2.5-1.5b or qwen2.5-7b.")
]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts sampled at once.")]
Generations = Annotated[int, typer.Option(min=2, help="Completions per prompt.")]
PromptLength = Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens per completion.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; by default as many as torch chooses.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds, in each of which every variant runs once.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", dir_okay=False, callback=check_folder, help="Write all results, raw samples included, to this file."
    ),
]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Type of the weights.")]
Engine = Annotated[Literal["engine", "engine-compiled"], typer.Option(help="The engine to measure.")]


def set_bench_threads(threads: int | None) -> None:
    """Apply the limits of the job, then the number of threads to measure with."""
    apply_resource_limits()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def print_and_save(results: dict[str, Any], table: str, path: Path | None) -> None:
    """Print the table of a measurement and, if a path is given, write the results."""
    from nested_reft.records.files import write_json

    typer.echo(table)
    if path is not None:
        write_json(path, results)


def bench_rollout(
    model: Measured,
    prompts: Prompts = 4,
    generations: Generations = 8,
    prompt_length: PromptLength = 32,
    new_tokens: NewTokens = 64,
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    threads: Threads = None,
    dtype: Dtype = "float32",
    rounds: Rounds = 20,
    sampler: Engine = "engine-compiled",
    json_path: Json = None,
) -> None:
    """Measure roll-outs: the engine against `generate`, and the speed-up by skipped layers."""
    ratios = read_ratios(skip_ratios)
    set_bench_threads(threads)
    from nested_reft.bench import display, rollout

    settings = rollout.RolloutBenchSettings(
        model, ratios, prompts, generations, prompt_length, new_tokens, dtype, sampler, rounds
    )
    results = rollout.measure_rollout(settings)
    print_and_save(results, display.rollout_table(results), json_path)


def bench_train(
    model: Measured,
    prompts: Prompts = 4,
    generations: Generations = 8,
    new_tokens: NewTokens = 64,
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    threads: Threads = None,
    dtype: Dtype = "float32",
    rounds: Rounds = 20,
    peak_memory: Annotated[
        bool,
        typer.Option(
            "--peak-memory", help="Measure peak memory too: run each variant once more, in a process of its own."
        ),
    ] = False,
    in_bfloat16: Annotated[
        bool,
        typer.Option(
            "--in-bfloat16",
            help="Measure `engine-compiled` also with bfloat16 in the update (`bf16`) and the roll-out "
            "(`sampling_dtype`).",
        ),
    ] = False,
    share_prompts: Annotated[
        bool,
        typer.Option(
            "--share-prompts", help="Measure `engine-compiled` also with updates that read each prompt once."
        ),
    ] = False,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Largest micro-batch of an update (`per_device_train_batch_size`).")
    ] = 16,
    json_path: Json = None,
) -> None:
    """Measure optimizer steps: stock TRL, and Nested-ReFT by sampler and skip ratio."""
    ratios = read_ratios(skip_ratios)
    set_bench_threads(threads)
    from nested_reft.bench import display, rollout, train

    settings = rollout.RolloutBenchSettings(
        model,
        ratios,
        prompts=prompts,
        generations=generations,
        new_tokens=new_tokens,
        dtype=dtype,
        micro_batch=micro_batch,
        rounds=rounds,
    )
    results = train.measure_train(settings, peak_memory, in_bfloat16=in_bfloat16, share_prompts=share_prompts)
    print_and_save(results, display.train_table(results), json_path)


def bench_eval(
    model: Measured,
    problems: Annotated[int, typer.Option(min=1, help="Problems of an evaluation.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems answered at once.")] = 100,
    new_tokens: Annotated[int, typer.Option(min=2, help="Longest completion in tokens.")] = 64,
    threads: Threads = None,
    rounds: Rounds = 20,
    json_path: Json = None,
) -> None:
    """Measure evaluation by each sampler: generated problems, answered by greedy decoding until EOS."""
    set_bench_threads(threads)
    from nested_reft.bench import display, evaluate

    settings = evaluate.EvalBenchSettings(model, problems, batch_size, new_tokens, rounds=rounds)
    results = evaluate.measure_eval(settings)
    print_and_save(results, display.eval_table(results), json_path)


def bench_vllm(
    model: Measured,
    prompts: Prompts = 4,
    generations: Generations = 8,
    prompt_length: PromptLength = 32,
    new_tokens: NewTokens = 64,
    skip_ratios: SkipRatios = "0.15",
    threads: Threads = None,
    dtype: Dtype = "float32",
    rounds: Rounds = 20,
    sampler: Engine = "engine-compiled",
    json_path: Json = None,
) -> None:
    """Measure roll-outs by vLLM, where it is installed: against the other samplers, and the push of the weights."""
    ratios = read_ratios(skip_ratios)
    set_bench_threads(threads)
    from nested_reft.bench import display, rollout, vllm

    settings = rollout.RolloutBenchSettings(
        model, ratios, prompts, generations, prompt_length, new_tokens, dtype, sampler, rounds
    )
    results = vllm.measure_vllm(settings)
    print_and_save(results, display.vllm_table(results), json_path)


def bench_grade(
    benchmarks: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Measure on the answers of this file of `prepare benchmarks`, too."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each set of answers.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how many answers per second one process grades."""
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


def bench_scale(
    study: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="YAML file of a study that is finished in this folder.")
    ],
    runs: Annotated[str, typer.Option(help="Numbers of trainings, multiples of 60.")] = "60,600,6000",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps per training.")] = 50,
    problems: Annotated[int, typer.Option(min=1, help="Problems per benchmark.")] = 100,
    store: Annotated[bool, typer.Option("--store", help="Fill an MLflow store with all runs, too.")] = False,
    json_path: Json = None,
) -> None:
    """Measure what grows with the number of runs: plan, status, report and MLflow, on synthetic studies."""
    from nested_reft.bench import display, scale
    from nested_reft.config.study_file import read_study

    numbers = [int(part) if part.strip().isdigit() else 0 for part in runs.split(",")]
    if any(number < 1 or number % scale.RUNS_PER_SEED for number in numbers):
        raise UserError(f"--runs is {runs!r}; give multiples of {scale.RUNS_PER_SEED}, such as 60,600")
    results = scale.measure_scale(read_study(study), Path.cwd(), numbers, steps, problems, store)
    print_and_save(results, display.scale_table(results), json_path)


def bench_plan(json_path: Json = None) -> None:
    """Compare the plan with small jobs on this machine: peak memory, and the time of a step."""
    from nested_reft.bench import plan

    results = plan.measure_plan()
    print_and_save(results, plan.plan_table(results), json_path)


def bench_figure(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Files written by `bench rollout`.")
    ],
    out: Annotated[
        Path, typer.Option(callback=check_folder, help="The figure's path without suffix; SVG and PNG are written.")
    ],
) -> None:
    """Draw measurements of roll-outs, one row per file."""
    from nested_reft.bench import display
    from nested_reft.records.files import read_json
    from nested_reft.report import style

    results = []
    for path in files:
        try:
            result = read_json(path)
            is_rollout = result["bench"] == "rollout"
        except (UserError, KeyError, TypeError):
            is_rollout = False
        if not is_rollout:
            raise UserError(f"{path} was not written by `bench rollout`; pass only such files")
        results.append(result)
    style.save(display.speed_figure(results), out)
