r"""Training sets and benchmarks: from the hub, a local path or the embedded generator to JSON lines.

A training row has `problem`, `solution` (a chain of thought that ends in `\boxed{answer}`) and
`answer`; a benchmark row has `benchmark`, `problem` and `answer`. Models are fetched here too, so
that everything that needs a network happens before the first training job.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nested_reft.config import (
    BenchmarkSource,
    ConfigError,
    DatasetSource,
    DataSource,
    ModelSource,
    Source,
    check_skip_ratios,
)
from nested_reft.embedded.problems import generate
from nested_reft.grading import BOX
from nested_reft.tracking import checksum, read_json, read_rows, write_json, write_rows

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


def read_problems(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a prepared training set or benchmark file."""
    return read_rows(path)


def unreachable(source: Source, error: Exception) -> ConfigError:
    """Return the sentence for something that the hub did not give."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"could not fetch {source.path!r} from the hub ({type(error).__name__}: {reason}); "
        "download it where there is a network and give its local path as `path` instead"
    )


def load_rows(source: DatasetSource | BenchmarkSource) -> list[dict[str, Any]]:
    """Return the raw rows of a JSON or JSON-lines file, a `save_to_disk` folder, or a hub dataset."""
    path = source.local_path
    if path is not None and path.is_file():
        text = path.read_text()
        return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    import datasets

    if path is not None:
        loaded = datasets.load_from_disk(str(path))
        return list(loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded)
    config_name = source.config_name if isinstance(source, DatasetSource) else None
    try:
        return list(datasets.load_dataset(source.path, config_name, split=source.split, revision=source.revision))
    except Exception as error:
        raise unreachable(source, error) from error


def normalize_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return `problem`, `solution` and `answer` of a row in one of the known formats.

    GSM8K has `question` and `answer` with `<<a=b>>` marks and a last line `#### value`; SVAMP `Body`,
    `Question`, `Equation` and `Answer`; MATH and the benchmarks are in our format already.
    """
    if "Body" in row:
        body = row["Body"].strip()
        problem = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {row['Question'].strip()}"
        answer = str(row["Answer"]).removesuffix(".0")
        return {"problem": problem, "solution": f"{row['Equation']} = {answer}", "answer": answer}
    if "question" in row and "####" in str(row.get("answer")):
        solution, answer = CALCULATOR_MARK.sub("", row["answer"]).rsplit("####", 1)
        return {"problem": row["question"], "solution": solution.strip(), "answer": answer.strip().replace(",", "")}
    return {name: row.get(name) for name in ("problem", "solution", "answer")}


def embedded_rows(source: DataSource, split: Any, seed: int) -> list[dict[str, Any]]:
    """Return generated rows."""
    assert source.size is not None
    rows = generate(source.name, split, source.size, seed)
    return [{"problem": row.problem, "solution": row.solution, "answer": row.answer} for row in rows]


def checked(rows: Iterable[dict[str, Any]], source: DataSource, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the rows; raise ConfigError for one without the fields, or for none at all."""
    rows = list(rows)[: source.size]
    for number, row in enumerate(rows, start=1):
        for field in fields:
            if row.get(field) in (None, "", []):
                raise ConfigError(f"{source.path}: row {number} has no `{field}`; correct the file or the format")
    if not rows:
        raise ConfigError(f"{source.path}: has no rows; choose another file or split")
    return rows


def fingerprint(problem: str) -> str:
    """Return the problem in lower case without anything but letters and digits, to compare by."""
    return "".join(re.findall(r"[^\W_]+", problem.lower()))


def prepare_benchmarks(sources: dict[str, BenchmarkSource], out: Path) -> None:
    """Write all benchmarks into one file, with a manifest of counts and its checksum beside it."""
    rows = []
    for name, source in sources.items():
        raw = (
            embedded_rows(source, "benchmark", seed=0) if source.is_embedded else map(normalize_row, load_rows(source))
        )
        for row in checked(raw, source, ("problem", "answer")):
            rows.append({"benchmark": name, "problem": row["problem"], "answer": row["answer"]})
    write_rows(out, rows)
    counts = {name: sum(row["benchmark"] == name for row in rows) for name in sources}
    write_json(out.with_suffix(".manifest.json"), {"rows": counts, "sha256": checksum(out)})


def prepare_dataset(source: DatasetSource, benchmarks: Path, out: Path) -> None:
    """Write the training set without the problems that a benchmark holds, and a manifest that lists them."""
    raw = embedded_rows(source, "train", seed=0) if source.is_embedded else map(normalize_row, load_rows(source))
    rows = checked(raw, source, ("problem", "solution", "answer"))
    forbidden = {fingerprint(row["problem"]) for row in read_rows(benchmarks)}
    kept = [row for row in rows if fingerprint(row["problem"]) not in forbidden]
    dropped = [row["problem"] for row in rows if fingerprint(row["problem"]) in forbidden]
    if not kept:
        raise ConfigError(f"{source.path}: every problem is in a benchmark; train on another dataset")
    for row in kept:
        if BOX not in row["solution"]:
            row["solution"] += f" The answer is {BOX}{row['answer']}}}."
    write_rows(out, kept)
    manifest = {"rows": len(kept), "dropped": dropped, "revision": source.revision, "sha256": checksum(out)}
    write_json(out.with_suffix(".manifest.json"), manifest)


def prepare_model(source: ModelSource, name: str, border: int, skip_ratios: list[float], out: Path) -> None:
    """Fetch the model if it is not here, check that it can be nested, and write where it is."""
    path = source.local_path
    if path is None:
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            path = Path(snapshot_download(source.path, revision=source.revision, allow_patterns=wanted))
        except Exception as error:
            raise unreachable(source, error) from error
    config = read_json(path / "config.json")
    try:
        check_skip_ratios(name, config["num_hidden_layers"], border, skip_ratios)
    except ValueError as error:
        raise ConfigError(f"the config {error}") from None
    write_json(out, {"path": str(path), "num_layers": config["num_hidden_layers"], "width": config["hidden_size"]})
