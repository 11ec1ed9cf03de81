"""Rows, and the files that are prepared from them."""

import json

from nested_reft.config.sections import BenchmarkSource, DatasetSource, Decontamination
from nested_reft.data.prepare import prepare_benchmarks, prepare_dataset
from nested_reft.records.files import read_json, read_rows


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def benchmarks_file(folder, problems=("Never trained on?",)):
    path = write_lines(folder / "bench.jsonl", [{"problem": problem, "answer": "1"} for problem in problems])
    prepare_benchmarks({"b": BenchmarkSource(path=path)}, folder / "benchmarks.jsonl")
    return folder / "benchmarks.jsonl"


def prepared(folder, rows, problems=("Never trained on?",), ngram=13, **source):
    """Prepare a training set of these rows; return the kept rows, the dropped rows, and the manifest."""
    dataset = DatasetSource(path=write_lines(folder / "train.jsonl", rows), **source)
    out = folder / "out.jsonl"
    prepare_dataset(dataset, Decontamination(ngram=ngram), benchmarks_file(folder, problems), out)
    return read_rows(out), read_rows(folder / "out.dropped.jsonl"), read_json(folder / "out.manifest.json")


def math(problem, answer="1", solution="It is one."):
    return {"problem": problem, "solution": solution, "answer": answer}


SVAMP_ROW = {
    "Body": "A box holds 8 red and 2 blue pens. If there are 3 boxes",
    "Question": "How many pens are there?",
    "Equation": "( ( 8.0 + 2.0 ) * 3.0 )",
    "Answer": 30.0,
}


SVAMP_READ = {
    "problem": "A box holds 8 red and 2 blue pens. If there are 3 boxes, How many pens are there?",
    "solution": r"8 + 2 = 10. 10 * 3 = 30. The answer is \boxed{30}.",
    "answer": "30",
}
