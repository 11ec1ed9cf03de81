"""The filling of a mirror from the Hugging Face hub, on a machine that has a network."""

import os
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from nested_reft.config.mirror import MANIFEST, is_fetched_revision, read_manifest
from nested_reft.config.sections import Source, local_folder
from nested_reft.config.study import Study
from nested_reft.data.prepare import MODEL_FILES
from nested_reft.data.sources import first_line
from nested_reft.errors import UserError
from nested_reft.model.weights import weight_files
from nested_reft.records.files import write_json
from nested_reft.records.lock import lock_product


class Entry(NamedTuple):
    """What the mirror holds in the folder `path`: a model or a dataset of the hub at a revision."""

    kind: Literal["model", "dataset"]
    path: str
    revision: str | None


def entries_of(study: Study) -> list[Entry]:
    """Return each model and dataset of the hub that a study uses, once.

    Raises:
        UserError: the study uses one name with two revisions, or as a model and as a dataset.
    """
    models = [study.models[name] for name in study.grid.model]
    data: list[Source] = [*(study.datasets[name] for name in study.grid.dataset), *study.benchmarks.values()]
    named = [Entry("model", one.path, one.revision) for one in models]
    named += [Entry("dataset", one.path, one.revision) for one in data]
    entries: dict[str, Entry] = {}
    for entry in named:
        if entry.path.startswith("embedded/") or local_folder(entry.path) is not None:
            continue
        if entries.setdefault(entry.path, entry) != entry:
            one, other = (f"{each.kind} at revision {each.revision}" for each in (entries[entry.path], entry))
            raise UserError(
                f"the study uses {entry.path} as {one} and as {other}, but a mirror has one folder for it; make them "
                "equal, or download one of them yourself and give its local path"
            )
    return list(entries.values())


def fetch_entry(entry: Entry, mirror: Path) -> str:
    """Download a model or dataset into the mirror unless it is there, and return in words what was done.

    While another process downloads into the same mirror, this one waits.

    Raises:
        UserError: the hub cannot be reached or lacks the entry, or the mirror has something else in its place or
            cannot be written to.
    """
    folder = mirror / entry.path
    if not folder.exists():
        if not os.access(mirror, os.W_OK):
            raise UserError(
                f"the mirror {mirror} lacks {entry.path} and cannot be written to; change its permissions, or use "
                "another mirror"
            )
        with lock_product(mirror):
            if not folder.exists():  # the process that this one waited for may have fetched it
                return download_entry(entry, folder)
    check_entry(entry, folder)
    return "is there already"


def check_entry(entry: Entry, folder: Path) -> None:
    """Check that a folder of the mirror is what a study wants.

    Raises:
        UserError: it is a dataset and not a model, or the other way round, or has another revision.
    """
    found = read_manifest(folder)
    if found and found["kind"] != entry.kind:
        raise UserError(f"the mirror has {folder} as a {found['kind']}, not as a {entry.kind}; use another mirror")
    if entry.revision and not is_fetched_revision(entry.revision, found):
        raise UserError(
            f"the mirror has {folder} at another revision than {entry.revision}; remove that folder, and run the "
            "same command again"
        )


def download_entry(entry: Entry, folder: Path) -> str:
    """Download a model or dataset into a folder that appears whole, and return its size and commit in words.

    The files are collected in a hidden folder, which gets its name when it is complete. After an interruption the
    next call continues in that folder.

    Raises:
        UserError: the hub cannot be reached or lacks the entry.
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download

    try:
        information = HfApi().repo_info(entry.path, repo_type=entry.kind, revision=entry.revision)
        commit = str(information.sha)
        part = folder.with_name(f".{folder.name}.{commit[:12]}.part")
        patterns = MODEL_FILES if entry.kind == "model" else None
        snapshot_download(entry.path, repo_type=entry.kind, revision=commit, local_dir=part, allow_patterns=patterns)
        # Where the hub stops to answer, the download returns what is there, and only this list is missing.
        get_cached_repo_tree(entry.path, repo_type=entry.kind, revision=commit, local_dir=part)
    except Exception as error:
        raise UserError(
            f"could not fetch the {entry.kind} {entry.path!r} from the hub ({type(error).__name__}: "
            f"{first_line(error)}); correct the cause (`hf auth login` for a gated one), and run the command again"
        ) from error
    if entry.kind == "model":
        weight_files(part)
    shutil.rmtree(part / ".cache")
    write_json(part / MANIFEST, {**entry._asdict(), "commit": commit})
    size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    part.rename(folder)
    return f"fetched, {size / 1e6:,.1f} MB, commit {commit[:12]}"
