"""Sub-commands for maintainers: `schema` and `pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.options import Out
from nested_reft.errors import UserError


def schema(
    folder: Annotated[Path, typer.Argument(help="Where config.yaml and its README are.")] = Path("config"),
) -> None:
    """Write config/schema.json (for editors) and config/README.md (for readers) from the models."""
    from nested_reft.config import reference as config_docs

    (folder / "schema.json").write_text(config_docs.schema())
    (folder / "README.md").write_text(config_docs.readme())


def pretrain(
    name: Annotated[str, typer.Argument(help="tiny-28 or wide-20.")],
    out: Out,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and slips.")] = 0,
) -> None:
    """Make an embedded model from nothing: its tokenizer, its pretraining, its model card."""
    from nested_reft.stages.pretrain import SHAPES, make_model

    if name not in SHAPES:
        raise UserError(f"{name} is not an embedded model; choose one of {', '.join(SHAPES)}.")
    make_model(name, out, seed)
