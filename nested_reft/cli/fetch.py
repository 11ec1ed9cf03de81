"""The command that fills the mirror of a study."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nested_reft.cli.run import Changes
from nested_reft.errors import UserError


def fetch(
    config: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    changes: Changes = None,
) -> None:
    """Download the models and data of a study from the hub into its mirror, for machines without a network."""
    from nested_reft.config.local_path import local_path
    from nested_reft.config.mirror import VARIABLE
    from nested_reft.config.study_file import merged, read_changes, read_mapping, read_study
    from nested_reft.data.fetch import entries_of, fetch_entry

    written = merged(read_mapping(config), read_changes(changes or [])).get("mirror")
    named = os.environ.pop(VARIABLE, None) or written
    study = read_study(config, [*(changes or []), "mirror=null"])  # the mirror need not exist yet
    if not isinstance(named, str):
        raise UserError(
            f"the study {study.study} names no mirror to fill; add its folder, for example "
            f"`nested-reft fetch {config} mirror=/scratch/mirror`, or set the variable {VARIABLE}"
        )
    mirror = local_path(named)
    try:
        mirror.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the mirror {mirror} cannot be created ({error.strerror}); name another folder") from None
    entries = entries_of(study)
    for number, entry in enumerate(entries, start=1):
        subject = f"[{number}/{len(entries)}] {entry.kind} {entry.path}"
        typer.echo(f"{subject} ...")
        typer.echo(f"{subject} {fetch_entry(entry, mirror)}")
    typer.echo(
        f"The mirror {mirror} has all that the study {study.study!r} takes from the hub. Without a network, check it "
        f"by `HF_HUB_OFFLINE=1 {VARIABLE}={mirror} nested-reft check {config}`."
    )
