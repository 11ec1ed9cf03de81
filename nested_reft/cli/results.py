"""The commands for a study that has run: `verify`, `compare`, `sample`, `replay`, `export`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import apply_resource_limits, check_out_folder, model_folder
from nested_reft.config.parse import option_name, parse_settings
from nested_reft.config.sections import Evaluation
from nested_reft.errors import UserError
from nested_reft.startup import quick_imports

Compared = Annotated[
    Path,
    typer.Argument(help="YAML file of a study, folder of its report, or folder of a training or an evaluation."),
]
Run = Annotated[Path, typer.Argument(help="Folder of an evaluation, or of an evaluated training.")]


def verify(
    study: Annotated[
        Path, typer.Argument(exists=True, help="Folder of the results, results/<study>, or YAML file of the study.")
    ],
) -> None:
    """Compare every product of a study with its checksums, settings and inputs; exit with 1 if anything is wrong.

    The command lists products that are missing, unfinished, damaged, stale (made with other settings, from other
    inputs or by another commit) or orphaned (of no job of the study). Given the folder of the results, it compares
    with the settings with which the study was started last.
    """
    from tqdm import tqdm

    from nested_reft.config.study_file import read_study
    from nested_reft.study.jobs import job_paths
    from nested_reft.study.verify import faults, started_settings

    settings = read_study(study) if study.is_file() else started_settings(study)
    directory = Path() if study.is_file() else study.absolute().parent.parent
    paths = job_paths(settings)
    found = list(faults(directory, settings, tqdm(paths, unit="product", disable=not sys.stderr.isatty())))
    for fault in found:
        typer.echo(f"{fault.kind:<10}  {fault.path}: {fault.sentence}")
    if found:
        typer.echo(f"{len(found)} faults in the {len(paths)} products of the study {settings.study!r}.")
        raise typer.Exit(1)
    typer.echo(f"All {len(paths)} products of the study {settings.study!r} are what their stages wrote.")


def report_folder(path: Path) -> Path | None:
    """Return the folder of a study's report, given that folder or the study's YAML file; None for another folder.

    Raises:
        UserError: the path does not exist, or the study of a YAML file has no report.
    """
    from nested_reft.config.layout import REPORTS
    from nested_reft.config.study_file import read_study

    if not path.exists():
        raise UserError(
            f"{path} does not exist; give the YAML file of a study, the folder of its report, or the folder of a "
            "training or an evaluation"
        )
    if path.is_file():
        report = Path(REPORTS.format(study=read_study(path).study))
        if not (report / "problem_scores.parquet").exists():
            raise UserError(f"the study of {path} has no report in {report}; run it first: `nested-reft run {path}`")
        return report
    if (path / "evaluate").is_dir():
        raise UserError(f"{path} has the results of a whole study; give the YAML file of the study instead")
    return path if (path / "problem_scores.parquet").exists() else None


def compare(
    a: Compared,
    b: Compared,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")] = 0.95,
    margin: Annotated[
        float, typer.Option(min=0.01, max=100, help="Smallest change of the accuracy that matters, in points.")
    ] = 1.0,
) -> None:
    """Compare the accuracies of two studies, or of two runs, on the same problems: delta, interval and verdict."""
    from nested_reft.report.compare import comparison_text, read_report, read_run

    reports = [report_folder(path) for path in (a, b)]
    if (reports[0] is None) != (reports[1] is None):
        raise UserError(f"{a} and {b} are a study and a run; give two studies or two runs")
    first, second = (
        read_report(report) if report else read_run(path) for path, report in zip((a, b), reports, strict=True)
    )
    typer.echo(comparison_text(first, second, confidence, margin))


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write the files to.")] = Path("samples"),
) -> None:
    """Write the completions of an evaluation in the format of lm-evaluation-harness's `--log_samples`."""
    from nested_reft.records.products import evaluation_folder
    from nested_reft.report.lm_eval_samples import export_samples

    check_out_folder(out)
    for file in export_samples(evaluation_folder(run), out):
        typer.echo(str(file))


def replay(
    run: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a training with training.log_completions.")
    ],
    mitigation: Annotated[str, typer.Option(help="Mitigations, separated by commas, or `all`.")] = "all",
    retrace_lambda: Annotated[float | None, typer.Option(help="Factor lambda of `retrace` and `trace`.")] = None,
    truncation_cap: Annotated[float | None, typer.Option(help="Cap C of `tis`.")] = None,
    icepop_min: Annotated[float | None, typer.Option(help="Lower bound alpha of `icepop`.")] = None,
    icepop_max: Annotated[float | None, typer.Option(help="Upper bound beta of `icepop`.")] = None,
    sequence_mask_cap: Annotated[float | None, typer.Option(help="Cap C of `sequence_mask`.")] = None,
    geometric_mask_bound: Annotated[float | None, typer.Option(help="Bound C of `geometric_mask`.")] = None,
    opsm_threshold: Annotated[float | None, typer.Option(help="Threshold delta of `opsm`.")] = None,
    ratio_level: Annotated[str | None, typer.Option(help="Level of the ratio r, such as `sequence`.")] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder to write the tables and the figure to.")] = Path(
        "replay"
    ),
) -> None:
    """Compute what a training would have logged under other mitigations, from its completions and without a model.

    The parameters of the mitigations, from --retrace-lambda to --ratio-level, are by default those of the run.
    """
    from nested_reft.mitigation import MITIGATIONS

    names = list(MITIGATIONS) if mitigation == "all" else mitigation.split(",")
    unknown = [name for name in names if name not in MITIGATIONS]
    if unknown:
        raise UserError(f"--mitigation has {unknown[0]!r}; choose from {', '.join(MITIGATIONS)}, or all")
    apply_resource_limits()
    with quick_imports():
        from nested_reft.stages import replay as replaying

    parameters = {
        "retrace_lambda": retrace_lambda,
        "truncation_cap": truncation_cap,
        "icepop_min": icepop_min,
        "icepop_max": icepop_max,
        "sequence_mask_cap": sequence_mask_cap,
        "geometric_mask_bound": geometric_mask_bound,
        "opsm_threshold": opsm_threshold,
        "ratio_level": ratio_level,
    }
    settings = replaying.settings_of(run, parameters)
    rows = list(replaying.replay(run, names, settings.nesting, settings.training))
    replaying.write_replay(rows, out)
    typer.echo(replaying.text(run, rows, settings))
    typer.echo(f"Tables and figure: {out}")


def sample(
    model: Annotated[
        list[Path],
        typer.Argument(
            parser=model_folder,
            help="Folder of a training or a warm-up, folder of a model, or embedded/<name>. Several are shown side by "
            "side.",
        ),
    ],
    problem: Annotated[str, typer.Option(help="The problem, without the words of the prompt template.")],
    num_samples: Annotated[int, typer.Option("--num", min=1, max=1024, help="Completions of each model.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sampling temperature. By default 0 for one completion, and 1 for several."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
) -> None:
    """Show what one or several models answer to a problem. Each is asked with the prompt template of its run."""
    apply_resource_limits()
    with quick_imports():
        import torch
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from nested_reft.grading.extract import extract_answer
        from nested_reft.stages import sample as sampling

    chosen = {
        "num_samples": num_samples,
        "temperature": (1.0 if num_samples > 1 else 0.0) if temperature is None else temperature,
        "max_new_tokens": max_new_tokens,
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "seed": seed,
    }
    if num_samples > 1 and chosen["temperature"] == 0:
        raise UserError(
            f"--num is {num_samples} at --temperature 0, where all completions are the same; choose one of them"
        )
    models = [sampling.find_model(path) for path in model]
    completions = sampling.sample(models, problem, parse_settings(Evaluation, chosen, option_name))
    table = Table(show_lines=True)
    for one in models:
        table.add_column(Text(one.name))
    for row in zip(*completions, strict=True):
        table.add_row(*(Text(f"{text.strip()}\n-> {extract_answer(text) or 'no answer in a box'}") for text in row))
    for one in models:
        typer.echo(f"{one.name}: {one.folder}")
    Console().print(table)
