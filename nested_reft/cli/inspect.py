"""The commands that inspect models and completions: `layers`, `diagnose`, `gradients`, `grade`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nested_reft.cli.options import (
    Border,
    Data,
    ModelArgument,
    SkipRatios,
    apply_resource_limits,
    check_out_folder,
    options_of,
    read_ratios,
)
from nested_reft.config import parse, stage_settings
from nested_reft.errors import UserError
from nested_reft.startup import quick_imports


def layers(
    model: Annotated[
        str, typer.Argument(help="Folder of a model, embedded/<name>, hub name, or model type of transformers.")
    ],
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    border: Border = 1,
) -> None:
    """Print the layers that can be skipped, the number skipped at each ratio, and the largest possible speed-up."""
    ratios = read_ratios(skip_ratios)
    from nested_reft.model.describe import describe_stack

    stack = describe_stack(model, border, ratios)
    valid = ", ".join(str(layer) for layer in stack.valid_layers)
    typer.echo(
        f"{stack.name}: N = {stack.num_layers} layers of {stack.layer_parameters / 1e6:.3g} M parameters, "
        f"output projection of {stack.lm_head_parameters / 1e6:.3g} M"
    )
    typer.echo(f"{len(stack.valid_layers)} layers can be skipped at border {border}: {valid}")
    typer.echo("skip ratio   layers skipped   speed-up of a token, at most   with the output projection")
    for row in stack.skipping:
        typer.echo(
            f"{row.skip_ratio:10.3f}   {row.num_skipped:14d}   {row.bound:28.3f}   {row.bound_with_lm_head:26.3f}"
        )


@options_of(stage_settings.DiagnosisSettings)
def diagnose(
    model: ModelArgument,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write the tables and the figure to.")] = Path("diagnosis"),
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    **options: Any,
) -> None:
    """Measure on given problems how far the nested model is from the full model, without any training."""
    ratios = read_ratios(skip_ratios)
    settings = parse.parse_settings(
        stage_settings.DiagnosisSettings, {"skip_ratios": ratios} | options, parse.option_name
    )
    check_out_folder(out)
    apply_resource_limits()
    with quick_imports():
        from nested_reft.stages import diagnose as diagnosis

    found = diagnosis.diagnose(model, data, settings)
    diagnosis.write_diagnosis(found, out)
    found.by_ratio["num_skipped"] = found.by_ratio["num_skipped"].astype(str)
    ranking = ", ".join(str(layer) for layer in diagnosis.rank_layers(found.by_layer))
    typer.echo(found.by_ratio.to_markdown(index=False, floatfmt=".4f"))
    typer.echo(f"\nLayers, from the smallest effect to the largest: {ranking}\nTables and figure: {out}")


@options_of(stage_settings.GradientSettings)
def gradients(
    model: ModelArgument,
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder to write to. One with batches of the same settings is gone on with.")
    ] = Path("gradients"),
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    mitigations: Annotated[str, typer.Option(help="Mitigations, separated by commas, or `all`.")] = "all",
    ratio_levels: Annotated[
        str, typer.Option(help="Levels of the importance ratio, separated by commas, such as `token,sequence`.")
    ] = "token",
    **options: Any,
) -> None:
    """Measure bias and variance of the policy gradient of nested roll-outs under each mitigation, without training."""
    lists = {"skip_ratios": read_ratios(skip_ratios), "ratio_levels": ratio_levels.split(",")}
    if mitigations != "all":
        lists["mitigations"] = mitigations.split(",")
    settings = parse.parse_settings(stage_settings.GradientSettings, lists | options, parse.option_name)
    check_out_folder(out)
    apply_resource_limits()
    with quick_imports():
        from nested_reft.report.gradients import text
        from nested_reft.stages import gradients as bench

    table, correlations = bench.table_of(bench.arms_of(settings), bench.measure(model, data, settings, out))
    bench.write_gradients(table, correlations, settings, out)
    typer.echo(text(table, correlations))
    typer.echo(f"\nTable and figure: {out}")


def grade(
    file: Annotated[
        str, typer.Argument(help="File of JSON lines with `completion` and `answer`, or `-` for standard input.")
    ],
    out: Annotated[str, typer.Option(help="File to write the grades to, or `-` for standard output.")] = "-",
) -> None:
    """Grade completions: write each row with the columns `correct`, `extracted`, `how` and `seconds`."""
    from nested_reft.grading import grade

    if file != "-" and not Path(file).is_file():
        raise UserError(f"{file} does not exist; give a file of JSON lines, or - for standard input")
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    rows = grade.read_completions(text, file)
    graded = "".join(json.dumps(row) + "\n" for row in grade.grade_rows(rows))
    if out == "-":
        typer.echo(graded, nl=False)
    else:
        Path(f"{out}.part").write_text(graded)
        Path(f"{out}.part").rename(out)
