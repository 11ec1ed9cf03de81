"""The commands of the stages, which Snakemake calls."""

from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import (
    Benchmarks,
    Data,
    Distributed,
    ModelPath,
    NumProcesses,
    OptionalModelPath,
    Out,
    Settings,
    Tracking,
    apply_resource_limits,
    check_out_folder,
    leased_device,
    made_by_another,
    open_record,
    read_settings,
    run_ranks,
)
from nested_reft.config import layout, sections, stage_settings, study
from nested_reft.errors import UserError
from nested_reft.startup import quick_imports


def prepare_model(settings: Settings, out: Out) -> None:
    """Fetch a model from the hub or dequantise a GGUF file, and write the path, depth and width of the model."""
    from nested_reft.data import prepare

    check_out_folder(out.parent)
    prepare.prepare_model(read_settings(sections.ModelSource, settings), out)


def prepare_gguf(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="GGUF file of a model.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write. By default FILE without its suffix.", show_default=False)
    ] = None,
) -> None:
    """Dequantise the model of a GGUF file into a folder with safetensors in float32, which every command reads.

    A folder that holds the model of this file already is left unchanged.
    """
    folder = out or sections.dequantised_folder(file)
    from nested_reft.data import gguf

    gguf.prepare_gguf(file, folder)
    typer.echo(str(folder))


def prepare_dataset(settings: Settings, benchmarks: Benchmarks, out: Out) -> None:
    """Write a training set without the problems that a benchmark contains, and the dropped problems."""
    parsed = read_settings(stage_settings.PrepareDataset, settings)
    from nested_reft.data import prepare

    prepare.prepare_dataset(parsed.dataset, parsed.decontamination, benchmarks, out)


def prepare_benchmarks(settings: Settings, out: Out) -> None:
    """Write all benchmarks into one file of JSON lines."""
    from nested_reft.data import prepare

    prepare.prepare_benchmarks(read_settings(stage_settings.PrepareBenchmarks, settings).benchmarks, out)


def sft(
    settings: Settings,
    model: ModelPath,
    data: Data,
    out: Out,
    tracking: Tracking = None,
    distributed: Distributed = "none",
    num_processes: NumProcesses = 1,
) -> None:
    """Warm up a model by SFT on the chains of thought of a training set."""
    parsed = read_settings(stage_settings.SftStage, settings)
    inputs = {"model": model, "data": data}
    if made_by_another(parsed, inputs, out) or run_ranks(distributed, num_processes, parsed, out):
        return
    with leased_device():
        apply_resource_limits()
        with quick_imports():
            from nested_reft.records.model_card import write_model_card
            from nested_reft.stages import sft

        with open_record(out, "sft", parsed.run.model_dump(), parsed, inputs, tracking) as record:
            sft.sft(parsed.sft, parsed.prompt, inputs["model"], parsed.run.seed, data, record, distributed)
            if record.is_written:
                write_model_card(out)


def train(
    settings: Settings,
    model: ModelPath,
    data: Data,
    out: Out,
    tracking: Tracking = None,
    distributed: Distributed = "none",
    num_processes: NumProcesses = 1,
) -> None:
    """Train one run of the grid from its SFT warm-up: GRPO with roll-outs from the nested model."""
    parsed = read_settings(stage_settings.TrainStage, settings)
    from nested_reft.grading.rewards import reward_files

    inputs = {"model": model, "data": data} | reward_files(parsed.training.reward_funcs or [])
    if made_by_another(parsed, inputs, out) or run_ranks(distributed, num_processes, parsed, out):
        return
    with leased_device():
        apply_resource_limits()
        with quick_imports():
            from nested_reft.records.model_card import write_model_card
            from nested_reft.stages import train

        with open_record(out, "train", parsed.run.model_dump(), parsed, inputs, tracking) as record:
            train.train(parsed.training, parsed.nesting, parsed.prompt, parsed.run, model, data, record, distributed)
            if record.is_written:
                write_model_card(out)


def evaluate(
    out: Out,
    settings: Annotated[
        str | None, typer.Option(help="Settings of the stage as JSON, or `-` to read them from standard input.")
    ] = None,
    model: OptionalModelPath = None,
    benchmarks: Annotated[Path | None, typer.Option(exists=True, help="File that `prepare benchmarks` wrote.")] = None,
    tracking: Tracking = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the records in --out again, without a model.")
    ] = False,
    distributed: Distributed = "none",
    num_processes: NumProcesses = 1,
) -> None:
    """Evaluate a model on all benchmarks, or grade the completions of an earlier evaluation again."""
    from nested_reft.records.model_card import add_accuracies
    from nested_reft.stages import evaluate as evaluation

    if regrade:
        if settings is not None or model is not None or benchmarks is not None:
            raise UserError("--regrade reads only the records in --out; leave the other options out")
        typer.echo(f"{evaluation.regrade(out)} grades changed in {out}")
        add_accuracies(out)
        return
    if settings is None or model is None or benchmarks is None:
        raise UserError("`evaluate` needs --settings, --model and --benchmarks, or --regrade; add them")
    parsed = read_settings(stage_settings.EvaluateStage, settings)
    if parsed.evaluation.sampler == "vllm" and num_processes > 1:
        raise UserError(
            f"--num-processes is {num_processes}, but evaluation.sampler is 'vllm', which is one process on one GPU; "
            "leave --distributed and --num-processes out"
        )
    inputs = {"model": model, "benchmarks": benchmarks}
    if made_by_another(parsed, inputs, out) or run_ranks(distributed, num_processes, parsed, out):
        return
    with leased_device():
        apply_resource_limits()
        with open_record(out, "evaluate", parsed.run, parsed, inputs, tracking) as record:
            evaluation.evaluate(parsed.evaluation, parsed.prompt, str(inputs["model"]), benchmarks, record)
            if record.is_written:
                add_accuracies(out)


def measure_speed(
    settings: Settings,
    model: ModelPath,
    data: Annotated[
        list[Path],
        typer.Option(exists=True, dir_okay=False, help="File that `prepare dataset` wrote; can be repeated."),
    ],
    out: Out,
    tracking: Tracking = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, as a training has them.")] = None,
    num_processes: Annotated[
        int, typer.Option(min=1, help="Processes of a training. The share of a batch that one samples is timed.")
    ] = 1,
) -> None:
    """Time the roll-outs of a study at each skip ratio. Nothing else should run on the machine meanwhile."""
    parsed = read_settings(stage_settings.MeasureSpeedStage, settings)
    inputs = {"model": model} | {f"data {place}": file for place, file in enumerate(data, start=1)}
    if made_by_another(parsed, inputs, out):
        return
    with leased_device():
        apply_resource_limits()
        with quick_imports():
            import torch

            from nested_reft.bench.measure_speed import measure_speed

        if threads is not None:
            torch.set_num_threads(threads)
        with open_record(out, "measure_speed", parsed.run.model_dump(), parsed, inputs, tracking) as record:
            measure_speed(parsed, inputs["model"], data, num_processes, record)


def analyse(
    settings: Annotated[
        str | None, typer.Option(help="The study: JSON, a YAML file, or `-` to read standard input.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the study's results.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the report to.")] = None,
    tracking: Tracking = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--from", exists=True, file_okay=False, help="Folder of a report, to rebuild it from its sources."
        ),
    ] = None,
) -> None:
    """Write all tables and figures of a study from its results, or from the sources of its report."""
    if report is not None:
        if settings is not None or results is not None or tracking is not None:
            raise UserError("--from reads only the report; leave --settings, --results and --tracking out")
        with quick_imports():
            from nested_reft.report import build

        check_out_folder(out or report)
        sources = build.rebuild(report, out or report)
        typer.echo(f"{out or report}: {build.summary(sources)}")
        return
    if settings is None or results is None or out is None:
        raise UserError(
            "`analyse` needs --settings, --results and --out, or --from with the folder of a report; add them"
        )
    parsed = read_settings(study.Study, settings)
    check_out_folder(out)
    with quick_imports():
        from nested_reft.report import build

    sources = build.report(parsed, results, out, Path(layout.LOGS.format(study=parsed.study)))
    typer.echo(f"{out}: {build.summary(sources)}")
    if tracking:
        from nested_reft.records.files import read_json
        from nested_reft.records.mlflow_report import mirror_report

        mirror_report(out, results, parsed.study, read_json(tracking)["uri"])
