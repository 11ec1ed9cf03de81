"""JSON and JSON-lines files that appear whole or not at all, and their checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nested_reft.errors import UserError

# Version of the layout of run.json, metrics.json and a report's provenance.json. Raise it with every change after
# which this code cannot read files of the version before.
SCHEMA_VERSION = 1


def check_schema_version(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a versioned file in a layout that this code does not read.

    Raises:
        UserError: if the version differs; the message names the file, both versions and the remedy.
    """
    version = content.get("schema_version", "missing")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"schema_version of {path} is {version} but this version of nested-reft reads {SCHEMA_VERSION}; "
            "run the stage that wrote the file again, or read the file with the version of nested-reft that wrote it"
        )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: the file is not JSON, for example because it was edited.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}); restore it, or make it again"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one piece: the file exists whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def read_versioned_json(path: Path) -> dict[str, Any]:
    """Return the content of a versioned JSON file, its `schema_version` checked and left out."""
    content: dict[str, Any] = read_json(path)
    check_schema_version(content, path)
    del content["schema_version"]
    return content


def write_versioned_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece, with the `schema_version` of its layout."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **content})


def read_rows(path: Path, torn_end: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file.

    Args:
        path: the path of the file.
        torn_end: whether the file may end in a part of a line, because a process was killed while it appended. The
            part is left out.
    """
    lines = path.read_text().split("\n")
    complete = [line for line in (lines[:-1] if torn_end else lines) if line]
    rows: list[dict[str, Any]] = json.loads(f"[{','.join(complete)}]")
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file in one piece."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def discard(folder: Path) -> None:
    """Delete a folder; if the process is killed meanwhile, no part of it remains under its name."""
    trash = folder.with_name(folder.name + ".trash")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash)


def apply_umask(folder: Path) -> None:
    """Give the files of a folder the permissions of new files: safetensors makes files that only their owner reads."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)


def checksum(path: Path) -> str:
    """Return the SHA-256 of the name and the content of a file, or of the files in a folder.

    Left out of a folder are hidden files, because Snakemake adds its time stamp to the folder of a finished job, and
    README.md, the card of a model, which gets the accuracies after other stages have read the model.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        is_content = file == path or not file.name.startswith((".", "README.md"))
        if file.is_file() and is_content:
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def output_checksums(folder: Path) -> dict[str, str]:
    """Return name -> checksum of what a stage has written into the folder of its product.

    Left out are `run.json`, which holds these checksums, and what exists only while a stage runs.
    """
    names = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name not in ("run.json", "checkpoints")
        and path.suffix not in (".part", ".trash")
        and not path.name.startswith(".")
    ]
    return checksums(folder, *names)


def checksums(folder: Path, *names: str) -> dict[str, str]:
    """Return name -> checksum of files or folders in a folder."""
    return {name: checksum(folder / name) for name in names}


def first_damaged(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Return the name of the first file or folder in a folder that is missing or has another checksum, or None."""
    for name, digest in digests.items():
        if not (folder / name).exists() or checksum(folder / name) != digest:
            return name
    return None


def check_outputs(folder: Path, found: Mapping[str, str]) -> None:
    """Refuse files or folders of a product that differ from what its stage wrote.

    Names are accepted if the folder has no `run.json` with checksums of them.

    Args:
        folder: the folder of the product.
        found: name -> checksum of the files and folders in it that are about to be read.

    Raises:
        UserError: a checksum differs, for example because the disk was full or the file was edited.
    """
    record = folder / "run.json"
    outputs = read_json(record).get("outputs", {}) if record.exists() else {}
    for name, digest in found.items():
        if outputs.get(name, digest) != digest:
            raise UserError(
                f"{folder / name} is not what its stage wrote: its checksum differs from that in {record}; restore "
                f"it, or delete {folder} and run the study again"
            )
