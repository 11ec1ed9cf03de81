"""The mirror: a folder `<owner>/<name>/` per model or dataset, which is read instead of the Hugging Face hub.

The mirror belongs to a process, as the cache of the hub does. Settings of stages and products therefore do not depend
on the place of the mirror, and another machine may have it elsewhere.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from nested_reft.config.local_path import local_path
from nested_reft.errors import UserError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Names the mirror. A process sets it from the config key `mirror` for the jobs that it starts.
VARIABLE = "NESTED_REFT_MIRROR"
# Written by `nested-reft fetch` into each entry: `kind`, `path`, `revision` and `commit`. Readers of models and data
# ignore a hidden file.
MANIFEST = ".mirror.json"


def use_mirror(folder: Any) -> None:
    """Let this process and the jobs that it starts read the mirror of a study, unless NESTED_REFT_MIRROR names one.

    Args:
        folder: the value of the config key `mirror`, which has not been validated yet.
    """
    if isinstance(folder, str) and not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = str(local_path(folder).absolute())


def mirror_folder() -> Path | None:
    """Return the folder of the mirror, or None if this process has none.

    Raises:
        UserError: the folder does not exist.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = local_path(named)
    if not folder.is_dir():
        raise UserError(
            f"the mirror {folder} is not a folder; correct the config key `mirror` or the variable {VARIABLE}, or "
            "create the folder by `nested-reft fetch` on a machine that has a network"
        )
    return folder


def mirrored(path: str) -> Path | None:
    """Return the folder of a model or dataset in the mirror, or None if the mirror has none of this name.

    Args:
        path: a path of the config; only a name on the hub can be in the mirror.

    Raises:
        UserError: the mirror does not exist, or its entry is a file or a link that leads to nothing.
    """
    is_hub_name = HUB_NAME.fullmatch(path) and not any(part.startswith(".") for part in path.split("/"))
    if not is_hub_name or (mirror := mirror_folder()) is None:
        return None
    entry = mirror / path
    for folder in (entry.parent, entry):
        if os.path.lexists(folder) and not folder.is_dir():
            what = f"a symbolic link to {folder.readlink()}" if folder.is_symlink() else "a file"
            raise UserError(f"the mirror has {folder} as {what}, which is not a folder; replace it by a folder")
    return entry if entry.exists() else None


def read_manifest(entry: Path) -> dict[str, Any]:
    """Return what `nested-reft fetch` has noted about an entry; an empty dict for a folder that it has not fetched."""
    manifest = entry / MANIFEST
    content: dict[str, Any] = json.loads(manifest.read_text()) if manifest.exists() else {}
    return content


def is_fetched_revision(revision: str, manifest: dict[str, Any]) -> bool:
    """Return whether an entry has a revision: a tag or branch by the name it was fetched by, or its commit.

    Args:
        revision: a tag, a branch, or at least the first seven digits of a commit.
        manifest: what `nested-reft fetch` has noted about the entry.
    """
    commit = str(manifest.get("commit", ""))
    return revision == manifest.get("revision") or (len(revision) >= 7 and commit.startswith(revision))


def broken_link(folder: Path) -> str:
    """Return what to append to an error about a folder if a link in it leads to nothing, else an empty text."""
    links = (path for path in sorted(folder.rglob("*")) if path.is_symlink() and not path.exists())
    first = next(links, None)
    return f"; the symbolic link {first} leads to nothing" if first else ""
