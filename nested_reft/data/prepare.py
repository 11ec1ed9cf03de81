"""The stage `prepare`: it writes models, training sets and benchmarks as files that the other stages read."""

from pathlib import Path

from nested_reft.config.sections import (
    BenchmarkSource,
    DatasetSource,
    Decontamination,
    ModelSource,
    dequantised_folder,
)
from nested_reft.data.decontamination import contaminated, duplicates_and_contradictions
from nested_reft.data.formats import benchmark_row, training_row
from nested_reft.data.gguf import prepare_gguf
from nested_reft.data.sources import Row, fetch_error, parsed_rows
from nested_reft.errors import UserError
from nested_reft.grading.extract import boxed
from nested_reft.grading.grade import is_correct
from nested_reft.records.files import checksum, read_json, read_rows, write_json, write_rows

# The files of a model on the hub that are downloaded.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def with_box(solution: str, answer: str) -> str:
    r"""Return the solution with the answer in its only box.

    A solution of MATH already has its box. Several boxes, or a box that does not hold the answer, would teach a model
    to box other text: such boxes are removed, and a sentence with the answer is added.
    """
    if solution.count("\\boxed") == 1 and is_correct(solution, answer):
        return solution
    without_box = solution.replace("\\boxed", "").strip()
    stop = "." if without_box[-1:].isalnum() else ""
    return f"{without_box}{stop} The answer is {boxed(answer)}.".lstrip()


def prepare_benchmarks(sources: dict[str, BenchmarkSource], out: Path) -> None:
    """Write all benchmarks into one file, and next to it a manifest with counts, revisions and the checksum.

    Raises:
        UserError: a source cannot be fetched or read, or a row of it is wrong.
    """
    rows = [
        {"benchmark": name} | {column: row[column] for column in ("problem", "answer", "cluster") if column in row}
        for name, source in sources.items()
        for row in parsed_rows(source, benchmark_row)
    ]
    write_rows(out, rows)
    manifest = {
        "rows": {name: sum(row["benchmark"] == name for row in rows) for name in sources},
        "revision": {name: source.known_revision for name, source in sources.items()},
        "sha256": checksum(out),
    }
    write_json(out.with_suffix(".manifest.json"), manifest)


def prepare_dataset(source: DatasetSource, decontamination: Decontamination, benchmarks: Path, out: Path) -> None:
    """Write the training set without duplicates, contradictions and problems of a benchmark.

    Two files are written next to it: `.dropped.jsonl` has a row for each problem that was left out, with the
    reason, and `.manifest.json` has counts, the revision, and the checksums of both files and of the benchmarks.

    Raises:
        UserError: the source cannot be fetched or read, a row of it is wrong, or no row is left.
    """
    rows = parsed_rows(source, training_row)
    inconsistent = duplicates_and_contradictions(rows)
    consistent = without(rows, inconsistent)
    in_benchmarks = contaminated(consistent, read_rows(benchmarks), decontamination.ngram)
    kept = without(consistent, in_benchmarks)
    if not kept:
        raise UserError(
            f"{source.path}: no row is left of {len(rows)}, of which {len(inconsistent)} are duplicates or "
            f"contradictions and {len(in_benchmarks)} are in a benchmark; train on another dataset, or raise "
            "decontamination.ngram"
        )
    dropped = out.with_suffix(".dropped.jsonl")
    write_rows(dropped, sorted(inconsistent + in_benchmarks, key=lambda row: row["row"]))
    finished = [
        {
            "problem": row["problem"],
            "solution": with_box(row["solution"], row["answer"]),
            "answer": row["answer"],
        }
        for row in kept
    ]
    write_rows(out, finished)
    num_duplicates = sum(row["kind"] == "duplicate" for row in inconsistent)
    counts = {
        "read": len(rows),
        "duplicates": num_duplicates,
        "contradictions": len(inconsistent) - num_duplicates,
        "dropped": len(in_benchmarks),
        "kept": len(kept),
    }
    manifest = {
        "rows": counts,
        "revision": source.known_revision,
        "sha256": {"rows": checksum(out), "dropped": checksum(dropped), "benchmarks": checksum(benchmarks)},
    }
    write_json(out.with_suffix(".manifest.json"), manifest)


def without(rows: list[Row], dropped: list[Row]) -> list[Row]:
    """Return the rows that are not among the dropped rows, by their number `row`."""
    numbers = {row["row"] for row in dropped}
    return [row for row in rows if row["row"] not in numbers]


def prepare_model(source: ModelSource, out: Path) -> None:
    """Download the model unless it is local, and write its path, number of layers and width.

    The model of a GGUF file is dequantised, and the checksum of the folder is written, too. The folder of a model in
    the mirror may change its place, so its name on the hub is written.

    Raises:
        UserError: the model cannot be fetched, or the GGUF file cannot be read.
    """
    if source.gguf_file is not None:
        prepare_gguf(source.gguf_file, dequantised_folder(source.gguf_file))
    path = source.local_path
    if path is None:
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(source.path, revision=source.revision, allow_patterns=MODEL_FILES))
        except Exception as error:
            raise fetch_error(source, error) from error
    config = read_json(path / "config.json")
    note = {"path": str(path), "num_layers": config["num_hidden_layers"], "width": config["hidden_size"]}
    if source.gguf_file is not None:
        note["sha256"] = checksum(path)
    if source.in_mirror is not None:
        note["hub_name"] = source.path
    write_json(out, note)
