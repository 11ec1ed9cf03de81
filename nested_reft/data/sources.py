"""Rows of a dataset on the hub, a local file, or an embedded generator."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nested_reft.config.mirror import broken_link, mirror_folder
from nested_reft.config.sections import BenchmarkSource, DatasetSource, Source, slice_of
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError

Row = dict[str, Any]


def fetch_error(source: Source, error: Exception) -> UserError:
    """Return the error for a model or dataset that could not be fetched from the hub."""
    mirror = mirror_folder()
    return UserError(
        f"could not fetch {source.path!r} from the hub ({type(error).__name__}: {first_line(error)})"
        f"{f', and the mirror {mirror} does not have it' if mirror else ''}; run `nested-reft fetch` where there is a "
        "network and name its folder as `mirror`, or give a local path as `path` instead"
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
    try:
        if path is None:
            import datasets

            return list(
                datasets.load_dataset(source.path, source.config_name, split=source.split, revision=source.revision)
            )
        return read_folder(path, source.config_name, source.split, is_mirror=source.in_mirror is not None)
    except UserError:
        raise
    except Exception as error:
        if path is None:
            raise fetch_error(source, error) from error
        files = ", ".join(sorted(file.name for file in path.iterdir() if not file.name.startswith("."))[:8])
        raise UserError(
            f"{path if source.in_mirror else source.path}: split {source.split!r} cannot be read from {files or 'it'} "
            f"({type(error).__name__}: {first_line(error)}{broken_link(path)}); "
            "correct `split`, or give a JSON-lines file, a `save_to_disk` folder or a downloaded dataset"
        ) from error


def read_folder(folder: Path, config_name: str | None, split: str, is_mirror: bool) -> list[Any]:
    """Return the rows of a split in a folder of `<split>.jsonl` files, of `save_to_disk`, or in the layout of the hub.

    Args:
        folder: the folder; files and a `save_to_disk` folder may also be in its folder `config_name`.
        config_name: the configuration of a hub dataset, or None.
        split: the split.
        is_mirror: whether a single split that was saved under another name is refused.

    Raises:
        UserError: a `save_to_disk` folder has no such split, or a `<split>.jsonl` file cannot be read.
        Exception: the library `datasets` cannot read the folder.
    """
    inner = folder / config_name if config_name and (folder / config_name).is_dir() else folder
    if (inner / f"{split}.jsonl").is_file():
        return read_file(inner / f"{split}.jsonl")
    import datasets

    if not any((inner / name).exists() for name in ("state.json", "dataset_dict.json")):
        datasets.disable_progress_bars()  # the conversion of local files takes seconds
        return list(datasets.load_dataset(str(folder.absolute()), config_name, split=split))
    loaded = datasets.load_from_disk(str(inner))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{inner}: has no split {split!r}; its splits are {', '.join(map(str, loaded))}")
        return list(loaded[split])
    if is_mirror and loaded.split not in (None, split):
        raise UserError(f"{inner}: has no split {split!r}; it was saved as the split {str(loaded.split)!r}")
    return list(loaded)


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
    """Return the rows of a source that `rows` and `size` select, parsed, each with its number in the source as `row`.

    Args:
        source: the source of the raw rows.
        parse: the parser of a row; the message of its ValueError is appended to "<file>: row <n>".

    Raises:
        UserError: `parse` refuses a row, there are no rows, or `rows` goes beyond the last one.
    """
    in_one_file = source.local_path is not None and source.local_path.is_file()
    where = source.path if in_one_file else f"{source.path}, split {source.split!r}"
    loaded = load_rows(source)
    selected = slice_of(source.rows or ":")
    if source.rows and max(selected.start + 1, selected.stop or 0) > len(loaded):
        raise UserError(f"{where}: has {len(loaded)} rows, but `rows` is {source.rows}; give smaller numbers")
    rows = []
    for number, raw in enumerate(loaded[source.row_slice], start=1 + source.row_slice.start):
        try:
            if not isinstance(raw, dict):
                raise ValueError(f"is {raw!r:.60}, which is not an object with columns; correct it")
            rows.append({"row": number} | parse(raw))
        except ValueError as error:
            raise UserError(f"{where}: row {number} {error}") from None
    if not rows:
        raise UserError(f"{where}: has no rows; choose another file or split")
    return rows
