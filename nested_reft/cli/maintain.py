"""The commands for maintainers: `schema` and `pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import Out
from nested_reft.errors import UserError


def schema(
    folder: Annotated[Path, typer.Argument(help="Folder of the configs.")] = Path("config"),
) -> None:
    """Generate config/schema.json and config/README.md from the definitions of the keys."""
    from nested_reft.config import reference

    (folder / "schema.json").write_text(reference.schema())
    (folder / "README.md").write_text(reference.readme())


def pretrain(
    name: Annotated[str, typer.Argument(help="Name of an embedded model: tiny-28 or wide-20.")],
    out: Out,
    seed: Annotated[
        int, typer.Option(help="Seed of the weights, of the order of the problems and of the planted mistakes.")
    ] = 0,
) -> None:
    """Make an embedded model from random weights: tokenizer, pretraining and model card."""
    from nested_reft.stages.pretrain import SHAPES, make_model

    if name not in SHAPES:
        raise UserError(f"{name} is not an embedded model; choose one of {', '.join(SHAPES)}.")
    make_model(name, out, seed)
