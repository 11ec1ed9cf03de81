"""JSON and JSON-lines files that appear whole or not at all, and their checksums."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one piece: it exists whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def read_rows(path: Path, torn_end: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; with `torn_end` its last line may be half-written and is left out."""
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in (lines[:-1] if torn_end else lines) if line]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file in one piece."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def discard(folder: Path) -> None:
    """Delete a folder in a way that a kill halfway never leaves a part of it under its name."""
    trash = folder.with_name(folder.name + ".trash")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
