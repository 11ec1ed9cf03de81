r"""Training sets and benchmarks: from the hub, a local path or the embedded generator to JSON lines.

A training row has `problem`, `solution` (a chain of thought that ends in `\boxed{answer}`) and
`answer`; a benchmark row has `benchmark`, `problem` and `answer`, a list of which any is right. Models
are fetched here too, so that all that needs a network happens before the first training job.
"""

import ast
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
)
from nested_reft.embedded.problems import generate
from nested_reft.grading import BOX
from nested_reft.tracking import checksum, read_json, read_rows, write_json, write_rows

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


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
        return read_file(path)
    import datasets

    config_name = source.config_name if isinstance(source, DatasetSource) else None
    try:
        if path is not None and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
            return list(loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded)
        return list(datasets.load_dataset(source.path, config_name, split=source.split, revision=source.revision))
    except Exception as error:
        if path is None:
            raise unreachable(source, error) from error
        reason = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"{source.path}: split {source.split!r} cannot be read ({type(error).__name__}: {reason}); "
            "give a JSON-lines file, a `save_to_disk` folder or a downloaded dataset"
        ) from error


def read_file(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON file that holds a list, or of a JSON-lines file."""
    text = path.read_text()
    if text.lstrip().startswith("["):
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path}: line {number} is not JSON ({error.msg}); correct it") from None
    return rows


def accepted_answers(answer: Any) -> list[str]:
    """Return the answers of which any is right, as text.

    AMC's are floats (`142.0`); Minerva's and Olympiad's are lists, or lists written as text.
    """
    if isinstance(answer, str) and answer.startswith("['"):
        answer = ast.literal_eval(answer)
    answers = answer if isinstance(answer, list) else [answer]
    return [str(one).strip().removesuffix(".0") for one in answers if one is not None and str(one).strip()]


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
            if not row.get(field):
                raise ConfigError(f"{source.path}: row {number} has no `{field}`; correct the file or the format")
    if not rows:
        raise ConfigError(f"{source.path}: has no rows; choose another file or split")
    return rows


def fingerprint(problem: str) -> str:
    """Return the words and signs of the problem in lower case, to compare by: white space does not matter."""
    return " ".join(re.findall(r"\w+|[^\w\s]", problem.lower()))


def prepare_benchmarks(sources: dict[str, BenchmarkSource], out: Path) -> None:
    """Write all benchmarks into one file, with a manifest of counts and its checksum beside it."""
    rows = []
    for name, source in sources.items():
        raw = (
            embedded_rows(source, "benchmark", seed=0) if source.is_embedded else map(normalize_row, load_rows(source))
        )
        answered = [row | {"answer": accepted_answers(row["answer"])} for row in raw]
        for row in checked(answered, source, ("problem", "answer")):
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


def prepare_model(source: ModelSource, out: Path) -> None:
    """Fetch the model if it is not here, and write where it is, its depth and its width."""
    path = source.local_path
    if path is None:
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            path = Path(snapshot_download(source.path, revision=source.revision, allow_patterns=wanted))
        except Exception as error:
            raise unreachable(source, error) from error
    config = read_json(path / "config.json")
    write_json(out, {"path": str(path), "num_layers": config["num_hidden_layers"], "width": config["hidden_size"]})
