"""The commands for a study that has run: `compare`, `sample`, `export`."""

from pathlib import Path
from typing import Annotated

import typer

from nested_reft.errors import UserError

Compared = Annotated[
    Path,
    typer.Argument(
        exists=True, help="YAML file of a study, folder of its report, or folder of a training or an evaluation."
    ),
]
Run = Annotated[
    Path, typer.Argument(exists=True, file_okay=False, help="Folder of an evaluation, or of an evaluated training.")
]


def report_folder(path: Path) -> Path | None:
    """Return the folder of a study's report, given that folder or the study's YAML file; None for another folder."""
    from nested_reft.config.layout import REPORTS
    from nested_reft.config.study_file import read_study

    if path.is_file():
        return Path(REPORTS.format(study=read_study(path).study))
    return path if (path / "problem_scores.parquet").exists() else None


def compare(
    a: Compared,
    b: Compared,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")] = 0.95,
) -> None:
    """Compare the accuracies of two studies, or of two runs, on the same problems: difference, interval and p."""
    from nested_reft.report.compare import comparison_text, read_report, read_run

    reports = [report_folder(path) for path in (a, b)]
    if (reports[0] is None) != (reports[1] is None):
        raise UserError(f"{a} and {b} are a study and a run; give two studies or two runs")
    first, second = (
        read_report(report) if report else read_run(path) for path, report in zip((a, b), reports, strict=True)
    )
    typer.echo(comparison_text(first, second, confidence))


def export(
    run: Run,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder to write the files to.")] = Path("samples"),
) -> None:
    """Write the completions of an evaluation in the format of lm-evaluation-harness's `--log_samples`."""
    from nested_reft.records.products import evaluation_folder
    from nested_reft.report.lm_eval_samples import export_samples

    for file in export_samples(evaluation_folder(run), out):
        typer.echo(str(file))
