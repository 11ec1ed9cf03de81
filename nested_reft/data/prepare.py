"""The stage `prepare`: models, training sets and benchmarks as files that the other stages read."""

from pathlib import Path

from nested_reft.config.sections import BenchmarkSource, DatasetSource, Decontamination, ModelSource
from nested_reft.data.decontamination import contaminated, flawed
from nested_reft.data.formats import benchmark_row, training_row
from nested_reft.data.sources import parsed_rows, unreachable
from nested_reft.errors import UserError
from nested_reft.grading.extract import BOX
from nested_reft.grading.grade import is_correct
from nested_reft.records.files import checksum, read_json, read_rows, write_json, write_rows


def with_box(solution: str, answer: str) -> str:
    r"""Return the solution with the answer in its only box.

    MATH's solutions have their box already. One that holds something else, or several, would teach the
    model to box what is not the answer: those are opened, and a sentence with the answer follows.
    """
    if solution.count("\\boxed") == 1 and is_correct(solution, answer):
        return solution
    opened = solution.replace("\\boxed", "").strip()
    stop = "." if opened[-1:].isalnum() else ""
    return f"{opened}{stop} The answer is {BOX}{answer}}}.".lstrip()


def prepare_benchmarks(sources: dict[str, BenchmarkSource], out: Path) -> None:
    """Write all benchmarks into one file, with a manifest of counts, revisions and its checksum beside it.

    Raises:
        UserError: a source cannot be had, or a row of it is wrong.
    """
    rows = [
        {"benchmark": name, "problem": row["problem"], "answer": row["answer"]}
        for name, source in sources.items()
        for row in parsed_rows(source, benchmark_row)
    ]
    write_rows(out, rows)
    manifest = {
        "rows": {name: sum(row["benchmark"] == name for row in rows) for name in sources},
        "revision": {name: source.revision for name, source in sources.items()},
        "sha256": checksum(out),
    }
    write_json(out.with_suffix(".manifest.json"), manifest)


def prepare_dataset(source: DatasetSource, decontamination: Decontamination, benchmarks: Path, out: Path) -> None:
    """Write the training set without repeats, contradictions and problems that a benchmark holds.

    Beside it come `.dropped.jsonl`, a row for each that was left out (`flawed`, `contaminated`), and
    `.manifest.json`: counts, revision, and the checksums of these two and of the benchmarks.

    Raises:
        UserError: the source cannot be had, a row of it is wrong, or nothing is left.
    """
    rows = parsed_rows(source, training_row)
    own = flawed(rows)
    flaws = {row["row"] for row in own}
    sound = [row for row in rows if row["row"] not in flaws]
    overlapping = contaminated(sound, read_rows(benchmarks), decontamination.ngram)
    overlaps = {row["row"] for row in overlapping}
    kept = [row for row in sound if row["row"] not in overlaps]
    if not kept:
        raise UserError(
            f"{source.path}: no row is left of {len(rows)}, of which {len(own)} are repeats or contradictions and "
            f"{len(overlapping)} are in a benchmark; train on another dataset, or raise decontamination.ngram"
        )
    dropped = out.with_suffix(".dropped.jsonl")
    write_rows(dropped, sorted(own + overlapping, key=lambda row: row["row"]))
    finished = [
        {
            "problem": row["problem"],
            "solution": with_box(row["solution"], row["answer"]),
            "answer": row["answer"],
        }
        for row in kept
    ]
    write_rows(out, finished)
    duplicates = sum(row["kind"] == "duplicate" for row in own)
    counts = {
        "read": len(rows),
        "duplicates": duplicates,
        "contradictions": len(own) - duplicates,
        "dropped": len(overlapping),
        "kept": len(kept),
    }
    manifest = {
        "rows": counts,
        "revision": source.revision,
        "sha256": {"rows": checksum(out), "dropped": checksum(dropped), "benchmarks": checksum(benchmarks)},
    }
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
