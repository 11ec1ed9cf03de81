"""Options and helpers that several sub-commands share."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from nested_reft.config import parse, sections
from nested_reft.errors import UserError

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


def read_settings(section: type[sections.Section], settings: str) -> Any:
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
            raise UserError(f"--settings is not JSON ({error}); quote it for the shell or pass `-`") from None
    return parse.parse_settings(section, loaded)


def model_folder(path: Path) -> Path:
    """Return the folder of a model that is given as a folder or by the model.json that points to it."""
    return Path(json.loads(path.read_text())["path"]) if path.suffix == ".json" else path


def apply_resource_limits() -> None:
    """Use the threads that Snakemake grants a job (it sets OMP_NUM_THREADS), and one GPU.

    With several GPUs in sight transformers would replicate the model, which TRL refuses: take the
    first one unless the user or the cluster has chosen.
    """
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(f"WORLD_SIZE is {processes}, but a job is one process on one GPU; start it without torchrun")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def open_record(
    out: Path, stage: str, run: dict[str, Any], settings: Any, inputs: dict[str, Path], tracking: Path | None
) -> Any:
    """Return the record of a product, once no other process writes the product."""
    from nested_reft.records.files import read_json
    from nested_reft.records.lock import lock_product
    from nested_reft.records.stage_record import StageRecord

    lock_product(out)
    uri, study = None, "unnamed"
    if tracking:
        store = read_json(tracking)
        uri, study = store["uri"], store["study"]
    plain = json.loads(parse.canonical(settings))
    return StageRecord(out, stage, run, plain, inputs, uri, study)


SkipRatios = Annotated[str, typer.Option(help="Skip ratios, separated by commas.")]
Border = Annotated[int, typer.Option(min=1, help="b: layers i with b <= i < N-b may be skipped.")]


def read_ratios(skip_ratios: str) -> list[float]:
    """Return comma-separated ratios as numbers between 0 and 1."""
    try:
        ratios = [float(ratio) for ratio in skip_ratios.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        raise UserError(f"--skip-ratios is {skip_ratios!r}; give numbers from 0 to 1 as 0.05,0.10,0.15")
    return ratios


def options_of(section: type[sections.Section]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each key of a section that is not yet one of its parameters.

    The command receives them as keyword arguments; names, types, defaults and help are those of the section's keys.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {parameter.name for parameter in parameters}
        for name, field in section.model_fields.items():
            if name not in names:
                parameters.append(
                    inspect.Parameter(
                        name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=field.default,
                        annotation=Annotated[field.annotation, typer.Option(help=field.description)],
                    )
                )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate
