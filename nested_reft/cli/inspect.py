"""Sub-commands for people: `layers`, `diagnose`, `grade`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import Border, Data, ModelArgument, SkipRatios, apply_resource_limits, read_ratios
from nested_reft.config import parse, sections
from nested_reft.errors import UserError


def layers(
    model: Annotated[str, typer.Argument(help="A model folder, embedded/<name>, a hub name, or a model type.")],
    skip_ratios: SkipRatios = "0.05,0.10,0.15",
    border: Border = 1,
) -> None:
    """Print the layers of a model that may be skipped, Table 1, and how much faster a token can become at most."""
    ratios = read_ratios(skip_ratios)
    from nested_reft.model.describe import describe_stack

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
    prompt = parse.parse_settings(sections.Prompt, {"template": template})
    if dtype not in ("float32", "bfloat16") or temperature <= 0:
        raise UserError(f"--dtype is {dtype!r} and --temperature {temperature}; give float32 or bfloat16, and above 0")
    apply_resource_limits()
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


def grade(
    file: Annotated[str, typer.Argument(help="JSON lines with `completion` and `answer`; `-` is standard input.")],
    out: Annotated[str, typer.Option(help="Where to write the verdicts; `-` is standard output.")] = "-",
) -> None:
    """Grade completions: write each row with `correct`, `extracted`, `how` and `seconds`."""
    from nested_reft.grading import grade

    if file != "-" and not Path(file).is_file():
        raise UserError(f"{file} does not exist; give a file of JSON lines, or - for standard input")
    rows = grade.read_completions(sys.stdin.read() if file == "-" else Path(file).read_text(), file)
    graded = "".join(json.dumps(row) + "\n" for row in grade.grade_rows(rows))
    if out == "-":
        typer.echo(graded, nl=False)
    else:
        Path(f"{out}.part").write_text(graded)
        Path(f"{out}.part").rename(out)
