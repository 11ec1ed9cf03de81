"""Rows of a dataset on the hub, a local file, or an embedded generator."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nested_reft.config.sections import BenchmarkSource, DatasetSource, Source
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError

Row = dict[str, Any]


def fetch_error(source: Source, error: Exception) -> UserError:
    """Return the error for a model or dataset that could not be fetched from the hub."""
    return UserError(
        f"could not fetch {source.path!r} from the hub ({type(error).__name__}: {first_line(error)}); "
        "download it where there is a network and give its local path as `path` instead"
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened to 200 characters; its class if it has no message."""
    message = str(error).strip()
    return message.splitlines()[0][:200] if message else type(error).__name__


def load_rows(source: DatasetSource | BenchmarkSource) -> list[Any]:
    """Return the raw rows of embedded data, a JSON or JSON-lines file, a `save_to_disk` folder, or a hub dataset.

    Raises:
        UserError: the source cannot be fetched or read.
    """
    if source.is_embedded:
        assert source.size is not None
        split: Any = "train" if isinstance(source, DatasetSource) else "benchmark"
        return [vars(problem) for problem in generate(source.name, split, source.size, seed=0)]
    path = source.local_path
    if path is not None and path.is_file():
        return read_file(path)
    import datasets

    config_name = source.config_name if isinstance(source, DatasetSource) else None
    try:
        if path is not None and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict) and source.split not in loaded:
                raise UserError(
                    f"{source.path}: has no split {source.split!r}; its splits are {', '.join(map(str, loaded))}"
                )
            return list(loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded)
        return list(datasets.load_dataset(source.path, config_name, split=source.split, revision=source.revision))
    except UserError:
        raise
    except Exception as error:
        if path is None:
            raise fetch_error(source, error) from error
        raise UserError(
            f"{source.path}: split {source.split!r} cannot be read ({type(error).__name__}: {first_line(error)}); "
            "give a JSON-lines file, a `save_to_disk` folder or a downloaded dataset"
        ) from error


def read_file(path: Path) -> list[Any]:
    """Return the rows of a JSON file that holds a list, or of a JSON-lines file.

    Raises:
        UserError: the file is not text, or a line of it is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # programs on Windows begin a text with a mark
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: is not UTF-8 text; save a text as UTF-8, or convert a table or an archive to JSON lines"
        ) from None
    if text.startswith("version https://git-lfs"):
        raise UserError(f"{path}: is a pointer of Git LFS and not the file itself; run `git lfs pull` in its clone")
    is_list = text.lstrip().startswith("[")
    rows = []
    for number, line in enumerate([text] if is_list else text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == 1 and is_object(text):
                    raise UserError(
                        f"{path}: is one JSON object, but should be a list of objects, or have an object on each line"
                    ) from None
                if number == 1 and path.suffix in (".csv", ".tsv"):
                    raise UserError(
                        f"{path}: is a table of text; convert it to JSON lines, with an object on each line"
                    ) from None
                line_number = error.lineno if is_list else number
                raise UserError(f"{path}: line {line_number} is not JSON ({error.msg}); correct it") from None
    return rows[0] if is_list else rows


def is_object(text: str) -> bool:
    """Return whether a text is one JSON object on several lines."""
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def parsed_rows(source: DatasetSource | BenchmarkSource, parse: Callable[[Row], Row]) -> list[Row]:
    """Return the first `size` rows of a source, parsed, each with its number as `row`.

    Args:
        source: the source of the raw rows.
        parse: the parser of a row; the message of its ValueError is appended to "<file>: row <n>".

    Raises:
        UserError: `parse` refuses a row, or there are no rows.
    """
    in_one_file = source.local_path is not None and source.local_path.is_file()
    where = source.path if in_one_file else f"{source.path}, split {source.split!r}"
    rows = []
    for number, raw in enumerate(load_rows(source)[: source.size], start=1):
        try:
            if not isinstance(raw, dict):
                raise ValueError(f"is {raw!r:.60}, which is not an object with columns; correct it")
            rows.append({"row": number} | parse(raw))
        except ValueError as error:
            raise UserError(f"{where}: row {number} {error}") from None
    if not rows:
        raise UserError(f"{where}: has no rows; choose another file or split")
    return rows
