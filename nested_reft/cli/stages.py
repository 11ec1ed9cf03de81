"""The command line: one sub-command per stage of a study, and a few for people.

Every stage can be pasted into a terminal as Snakemake prints it. Heavy imports stand inside the
sub-commands, so that `--help` and the analysis do not wait for torch. Exit codes: 0 done, 1 failed,
2 bad usage or configuration, told in one sentence.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from nested_reft.config import sections as config
from nested_reft.config.sections import ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
prepare_app = typer.Typer(no_args_is_help=True, help="Fetch or generate models, training sets and benchmarks.")
app.add_typer(prepare_app, name="prepare")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed.")
app.add_typer(bench_app, name="bench")

Settings = Annotated[str, typer.Option(help="The stage's settings, as JSON; `-` reads them from standard input.")]
Out = Annotated[Path, typer.Option(help="Where to write.")]
ModelPath = Annotated[
    Path, typer.Option("--model", exists=True, help="A model folder, or a model.json written by `prepare model`.")
]
ModelArgument = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A model folder.")]
Data = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A JSON-lines file written by `prepare`.")]
Benchmarks = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="What `prepare benchmarks` wrote.")]
Tracking = Annotated[
    Path | None, typer.Option(exists=True, help="tracking.json of the study; without it MLflow is left out.")
]


def read_settings(section: type[config.Section], settings: str) -> Any:
    """Return the settings, JSON or (from standard input) YAML, as a section of the configuration."""
    try:  # every JSON text but for a few numbers is YAML too, which is why JSON is tried first
        text = sys.stdin.read() if settings == "-" else settings
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            loaded = yaml.safe_load(text) if settings == "-" else None
        except yaml.YAMLError:
            loaded = None
        if not isinstance(loaded, dict):
            raise ConfigError(f"--settings is not JSON ({error}); quote it for the shell or pass `-`") from None
    return config.parse_settings(section, loaded)


def model_folder(path: Path) -> Path:
    """Return the folder of a model that is given as a folder or by the model.json that points to it."""
    return Path(json.loads(path.read_text())["path"]) if path.suffix == ".json" else path


def use_what_is_granted() -> None:
    """Use the threads that Snakemake grants a job (it sets OMP_NUM_THREADS), and one GPU.

    With several GPUs in sight transformers would replicate the model, which TRL refuses: take the
    first one unless the user or the cluster has chosen.
    """
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"WORLD_SIZE is {processes}, but a job is one process on one GPU; start it without torchrun")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def open_record(
    out: Path, stage: str, cell: dict[str, Any], settings: Any, inputs: dict[str, Path], tracking: Path | None
) -> Any:
    """Return the record of a stage product."""
    from nested_reft.records.mlflow_mirror import StageRecord, read_json

    uri, study = None, "unnamed"
    if tracking:
        store = read_json(tracking)
        uri, study = store["uri"], store["study"]
    plain = json.loads(config.canonical(settings))
    return StageRecord(out, stage, cell, plain, inputs, uri, study)


@prepare_app.command("model")
def prepare_model(settings: Settings, out: Out) -> None:
    """Fetch a model from the hub unless it is here, and note where it is."""
    from nested_reft.data import formats as data

    data.prepare_model(read_settings(config.ModelSource, settings), out)


@prepare_app.command("dataset")
def prepare_dataset(settings: Settings, benchmarks: Benchmarks, out: Out) -> None:
    """Write a training set as JSON lines, without the problems that a benchmark holds, and what was dropped."""
    parsed = read_settings(config.PrepareDataset, settings)
    from nested_reft.data import formats as data

    data.prepare_dataset(parsed.dataset, parsed.decontamination, benchmarks, out)


@prepare_app.command("benchmarks")
def prepare_benchmarks(settings: Settings, out: Out) -> None:
    """Write all benchmarks as one file of JSON lines."""
    from nested_reft.data import formats as data

    data.prepare_benchmarks(read_settings(config.PrepareBenchmarks, settings).benchmarks, out)


@app.command()
def sft(settings: Settings, model: ModelPath, data: Data, out: Out, tracking: Tracking = None) -> None:
    """Warm up a model on the chains of thought of a training set."""
    parsed = read_settings(config.SftStage, settings)
    use_what_is_granted()
    from nested_reft.stages import train as training

    inputs = {"model": model_folder(model), "data": data}
    record = open_record(out, "sft", parsed.cell.model_dump(), parsed, inputs, tracking)
    training.sft(parsed.sft, parsed.prompt, inputs["model"], parsed.cell.seed, data, record)


@app.command()
def train(settings: Settings, model: ModelPath, data: Data, out: Out, tracking: Tracking = None) -> None:
    """Train one run of the grid: Nested-ReFT, by GRPO, from an SFT model."""
    parsed = read_settings(config.TrainStage, settings)
    use_what_is_granted()
    from nested_reft.stages import train as training

    record = open_record(out, "train", parsed.cell.model_dump(), parsed, {"model": model, "data": data}, tracking)
    training.train(parsed.training, parsed.nesting, parsed.prompt, parsed.cell, model, data, record)


@app.command()
def evaluate(
    out: Out,
    settings: Annotated[str | None, typer.Option(help="The stage's settings, as JSON; `-` reads them.")] = None,
    model: Annotated[Path | None, typer.Option(exists=True, help="A model folder, or its model.json.")] = None,
    benchmarks: Annotated[Path | None, typer.Option(exists=True, help="What `prepare benchmarks` wrote.")] = None,
    tracking: Tracking = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the records in --out again: no model, no GPU, no generation.")
    ] = False,
) -> None:
    """Run every benchmark with one model, or grade what it once answered again."""
    from nested_reft.stages import evaluate as evaluation

    if regrade:
        if settings is not None or model is not None or benchmarks is not None:
            raise ConfigError("--regrade takes the records in --out and nothing else; leave the other options out")
        typer.echo(f"{evaluation.regrade(out)} verdicts changed in {out}")
        return
    if settings is None or model is None or benchmarks is None:
        raise ConfigError("`evaluate` needs --settings, --model and --benchmarks; only --regrade does without them")
    parsed = read_settings(config.EvaluateStage, settings)
    use_what_is_granted()
    inputs = {"model": model_folder(model), "benchmarks": benchmarks}
    record = open_record(out, "evaluate", parsed.cell, parsed, inputs, tracking)
    evaluation.evaluate(parsed.evaluation, parsed.prompt, str(inputs["model"]), benchmarks, record)


@app.command()
def analyse(
    settings: Annotated[str | None, typer.Option(help="The study, as JSON; `-` reads it, or its YAML file.")] = None,
    results: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="The study's results.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write.")] = None,
    tracking: Tracking = None,
    report: Annotated[
        Path | None, typer.Option("--from", exists=True, file_okay=False, help="A report to rebuild from its sources.")
    ] = None,
) -> None:
    """Write every table and figure of a study, from its results or `--from` the report that they once gave."""
    if report is not None:
        if settings is not None or results is not None or tracking is not None:
            raise ConfigError("--from takes all from the report; leave --settings, --results and --tracking out")
        from nested_reft.report import tables as analysis

        analysis.rebuild(report, out or report)
        return
    if settings is None or results is None or out is None:
        raise ConfigError("`analyse` needs --settings, --results and --out, or --from a report")
    study = read_settings(config.Study, settings)
    from nested_reft.report import tables as analysis

    analysis.report(study, results, out)
    if tracking:
        from nested_reft.records.mlflow_mirror import mirror_report, read_json

        mirror_report(out, results, study.study, read_json(tracking)["uri"])


SkipRatios = Annotated[str, typer.Option(help="Skip ratios, separated by commas.")]
Border = Annotated[int, typer.Option(min=1, help="b: layers i with b <= i < N-b may be skipped.")]


def read_ratios(skip_ratios: str) -> list[float]:
    """Return comma-separated ratios as numbers between 0 and 1."""
    try:
        ratios = [float(ratio) for ratio in skip_ratios.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        raise ConfigError(f"--skip-ratios is {skip_ratios!r}; give numbers from 0 to 1 as 0.05,0.10,0.15")
    return ratios


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="A model folder, embedded/<name>, a hub name, or a model type.")],
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    border: Border = 1,
) -> None:
    """Print the layers of a model that may be skipped, Table 1, and how much faster a token can become at most."""
    ratios = read_ratios(skip_ratios)
    from nested_reft.model.layers import describe_stack

    stack = describe_stack(model, border, ratios)
    valid = ", ".join(str(layer) for layer in stack.valid_layers)
    typer.echo(
        f"{stack.name}: N = {stack.num_layers} layers of {stack.layer_parameters / 1e6:.3g} M parameters, "
        f"output projection of {stack.lm_head_parameters / 1e6:.3g} M"
    )
    typer.echo(f"{len(stack.valid_layers)} layers may be skipped at border {border}: {valid}")
    typer.echo("skip ratio   layers skipped   speed-up of a token, at most   with the output projection")
    for row in stack.skipping:
        typer.echo(
            f"{row.skip_ratio:10.3f}   {row.num_skipped:14d}   {row.bound:28.3f}   {row.bound_with_lm_head:26.3f}"
        )


@app.command()
def diagnose(
    model: ModelArgument,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("diagnosis"),
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    border: Border = 1,
    num_prompts: Annotated[int, typer.Option(min=1, help="Problems taken from the data.")] = 32,
    num_generations: Annotated[int, typer.Option(min=1, help="Completions of each, under each mask.")] = 4,
    num_masks: Annotated[int, typer.Option(min=1, help="Masks drawn for each ratio.")] = 4,
    max_completion_length: Annotated[int, typer.Option(min=1, help="Tokens of a completion, at most.")] = 256,
    fixed_length: Annotated[bool, typer.Option(help="Ban the end token, as in training.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences scored at once.")] = 16,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    template: Annotated[str, typer.Option(help="Prompt template: qwen-math, r1 or none.")] = "qwen-math",
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of masks and samples.")] = 0,
) -> None:
    """Measure, before GPU days are spent, how far a nested model is from the whole one on given problems."""
    ratios = read_ratios(skip_ratios)
    prompt = config.parse_settings(config.Prompt, {"template": template})
    if dtype not in ("float32", "bfloat16") or temperature <= 0:
        raise ConfigError(
            f"--dtype is {dtype!r} and --temperature {temperature}; give float32 or bfloat16, and above 0"
        )
    use_what_is_granted()
    from nested_reft.stages import diagnose as diagnosis

    settings = diagnosis.Settings(
        skip_ratios=ratios,
        border=border,
        num_prompts=num_prompts,
        num_generations=num_generations,
        num_masks=num_masks,
        max_completion_length=max_completion_length,
        fixed_length=fixed_length,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
    )
    by_ratio, by_layer = diagnosis.diagnose(model, dtype, data, prompt.template, settings)
    diagnosis.write(by_ratio, by_layer, out)
    by_ratio["num_skipped"] = by_ratio["num_skipped"].astype(str)
    typer.echo(by_ratio.to_markdown(index=False, floatfmt=".4f"))
    typer.echo(f"\nLayers, from the one that matters least: {diagnosis.ranking(by_layer)}\nTables and figure: {out}")


@app.command()
def grade(
    file: Annotated[str, typer.Argument(help="JSON lines with `completion` and `answer`; `-` is standard input.")],
    out: Annotated[str, typer.Option(help="Where to write the verdicts; `-` is standard output.")] = "-",
) -> None:
    """Grade completions: write each row with `correct`, `extracted`, `how` and `seconds`."""
    from nested_reft.grading import compare as grading

    if file != "-" and not Path(file).is_file():
        raise ConfigError(f"{file} does not exist; give a file of JSON lines, or - for standard input")
    rows = grading.read_completions(sys.stdin.read() if file == "-" else Path(file).read_text(), file)
    graded = "".join(json.dumps(row) + "\n" for row in grading.grade_rows(rows))
    if out == "-":
        typer.echo(graded, nl=False)
    else:
        Path(f"{out}.part").write_text(graded)
        Path(f"{out}.part").rename(out)


@bench_app.command("grade")
def bench_grade(
    benchmarks: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file of `prepare benchmarks`, to measure on too."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how many answers a second are graded, in one process."""
    from nested_reft.bench import harness as bench

    results = bench.bench_grade(benchmarks, repeats)
    if as_json:
        typer.echo(bench.as_json(results))
        return
    for name, rate in results.items():
        typer.echo(
            f"{name}: {rate['median']:,.0f} a second ({rate['lowest']:,.0f} to {rate['highest']:,.0f} "
            f"in {repeats} repeats of {rate['rows']:,.0f})"
        )


def check_folder(path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before minutes are spent on what it is to hold.

    Raises:
        ConfigError: if its folder is not there.
    """
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: {path.parent} is no folder; make it, or give another one")
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


def bench_with(threads: int | None) -> None:
    """Prepare the process for a measurement."""
    use_what_is_granted()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def tell(results: dict[str, Any], table: str, path: Path | None) -> None:
    """Print a measurement and, if a path is given, write it."""
    from nested_reft.records.mlflow_mirror import write_json

    typer.echo(table)
    if path is not None:
        write_json(path, results)


@bench_app.command("rollout")
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
    sampler: Annotated[str, typer.Option(help="The engine: eager or compiled.")] = "compiled",
    json_path: Json = None,
) -> None:
    """Measure roll-outs: the engine against `generate`, and what skipping layers gains."""
    ratios = read_ratios(skip_ratios)
    if dtype not in ("float32", "bfloat16") or sampler not in ("eager", "compiled"):
        raise ConfigError(
            f"--dtype is {dtype!r} and --sampler {sampler!r}; give float32 or bfloat16, and eager or compiled"
        )
    bench_with(threads)
    from nested_reft.bench import display as bench_report
    from nested_reft.bench import rollout as bench_rollout

    settings = bench_rollout.Settings(
        model, ratios, prompts, generations, prompt_length, new_tokens, dtype, sampler, pairs
    )
    results = bench_rollout.measure_rollout(settings)
    tell(results, bench_report.rollout_table(results), json_path)


@bench_app.command("train")
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
        raise ConfigError(f"--dtype is {dtype!r}; give float32 or bfloat16")
    bench_with(threads)
    from nested_reft.bench import display as bench_report
    from nested_reft.bench import rollout as bench_rollout
    from nested_reft.bench import train as bench_train

    settings = bench_rollout.Settings(
        model, ratios, prompts=prompts, generations=generations, new_tokens=new_tokens, dtype=dtype, pairs=pairs
    )
    results = bench_train.measure_train(settings, peak_memory)
    tell(results, bench_report.train_table(results), json_path)


@bench_app.command("eval")
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
    bench_with(threads)
    from nested_reft.bench import display as bench_report
    from nested_reft.bench import evaluate as bench_eval

    settings = bench_eval.Settings(model, problems, batch_size, new_tokens, pairs=pairs)
    results = bench_eval.measure_eval(settings)
    tell(results, bench_report.eval_table(results), json_path)


@bench_app.command("figure")
def bench_figure(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="What `bench rollout` wrote.")],
    out: Annotated[
        Path, typer.Option(callback=check_folder, help="The figure, without its ending; SVG and PNG are written.")
    ],
) -> None:
    """Draw measurements of roll-outs, one row for each file."""
    from nested_reft.bench import display as bench_report
    from nested_reft.records.mlflow_mirror import read_json
    from nested_reft.report import figures as plots

    results = []
    for path in files:
        try:
            results.append(read_json(path))
            is_one = results[-1]["bench"] == "rollout"
        except (ValueError, KeyError, TypeError):
            is_one = False
        if not is_one:
            raise ConfigError(f"{path} was not written by `bench rollout`; give such files alone")
    plots.save(bench_report.speed_figure(results), out)


@bench_app.command("overhead")
def bench_overhead(
    resources: Annotated[Path, typer.Argument(help="benchmarks/<study>: Snakemake's resource table of each job.")],
    cores: Annotated[int, typer.Option(min=1, help="Cores that the study ran on.")],
) -> None:
    """Tell how much of the machine a finished study of one-thread jobs left idle."""
    from nested_reft.bench import harness as bench

    measured = bench.overhead(resources, cores)
    typer.echo(
        f"{measured['jobs']} jobs of {measured['stage_s']:,.0f} s together in {measured['wall_s']:,.0f} s on "
        f"{measured['cores']} cores: overhead {measured['overhead']:.1%}"
    )


@app.command("tracking-store")
def tracking_store(
    uri: Annotated[str, typer.Option(help="The MLflow store; empty for none.")],
    study: Annotated[str, typer.Option(help="The experiment.")],
    out: Out,
) -> None:
    """Create the MLflow store, the study's experiment and its parent run, once, before jobs track into them."""
    from nested_reft.records.mlflow_mirror import open_study, write_json

    if uri:
        try:
            open_study(uri, study)
        except Exception as error:
            typer.echo(f"MLflow at {uri} cannot be opened ({error}); the study runs without it", err=True)
    write_json(out, {"uri": uri or None, "study": study})


@app.command()
def track(
    results: Annotated[Path, typer.Argument(help="Folder that holds finished stage products.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Folder that holds the studies' reports.")] = Path("reports"),
    uri: Annotated[str, typer.Option(help="The MLflow store to rebuild.")] = "sqlite:///results/mlflow.db",
) -> None:
    """Rebuild the MLflow store from the files under `results`, and from the reports if they are there."""
    if not results.is_dir():
        raise ConfigError(f"results folder {str(results)!r} does not exist; give the folder of a study")
    from nested_reft.records.mlflow_mirror import rebuild

    records, taken = rebuild(results, reports, uri)
    typer.echo(f"{taken} of {records} runs are in {uri}")
    if taken < records:
        raise typer.Exit(1)


@app.command()
def schema(
    folder: Annotated[Path, typer.Argument(help="Where config.yaml and its README are.")] = Path("config"),
) -> None:
    """Write config/schema.json (for editors) and config/README.md (for readers) from the models."""
    from nested_reft.config import reference as config_docs

    (folder / "schema.json").write_text(config_docs.schema())
    (folder / "README.md").write_text(config_docs.readme())


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="tiny-28 or wide-20.")],
    out: Out,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and slips.")] = 0,
) -> None:
    """Make an embedded model from nothing: its tokenizer, its pretraining, its model card."""
    from nested_reft.stages.pretrain import SHAPES, make_model

    if name not in SHAPES:
        raise ConfigError(f"{name} is not an embedded model; choose one of {', '.join(SHAPES)}.")
    make_model(name, out, seed)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except ConfigError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
