"""Training sets and benchmarks: formats, decontamination, the sentence when something cannot be had."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from nested_reft.config import BenchmarkSource, ConfigError, DatasetSource, ModelSource
from nested_reft.data import normalize_row, prepare_benchmarks, prepare_dataset, prepare_model
from nested_reft.grading import is_correct
from nested_reft.tracking import read_json, read_rows

from .conftest import run

DATA = Path(os.environ.get("NESTED_REFT_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="NESTED_REFT_DATA names no folder of real data")


def benchmarks_file(folder, problems=("Never trained on?",)):
    (folder / "bench.jsonl").write_text("".join(json.dumps({"problem": p, "answer": "1"}) + "\n" for p in problems))
    prepare_benchmarks({"b": BenchmarkSource(path=str(folder / "bench.jsonl"))}, folder / "benchmarks.jsonl")
    return folder / "benchmarks.jsonl"


def test_formats():
    gsm8k = {"question": "How many?", "answer": "Two and two is <<2+2=4>>4.\n#### 1,004"}
    assert normalize_row(gsm8k) == {"problem": "How many?", "solution": "Two and two is 4.", "answer": "1004"}
    svamp = {"Body": "There are 8 pens", "Question": "How many?", "Equation": "( 8.0 - 6.0 )", "Answer": "2.0"}
    assert normalize_row(svamp)["problem"] == "There are 8 pens. How many?"
    assert normalize_row(svamp)["answer"] == "2"


def test_benchmark_problems_are_dropped_from_training_sets(tmp_path):
    rows = [{"problem": p, "solution": "s", "answer": "1"} for p in ("never  TRAINED on?", "Other")]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    source = DatasetSource(path=str(tmp_path / "train.json"))
    prepare_dataset(source, benchmarks_file(tmp_path), tmp_path / "out.jsonl")
    assert [row["problem"] for row in read_rows(tmp_path / "out.jsonl")] == ["Other"]
    assert read_rows(tmp_path / "out.jsonl")[0]["solution"] == r"s The answer is \boxed{1}."
    assert read_json(tmp_path / "out.manifest.json")["dropped"] == ["never  TRAINED on?"]


def test_a_row_without_an_answer_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"problem": "p", "solution": "s", "answer": ""}\n')
    with pytest.raises(ConfigError, match=r"train.jsonl: row 1 has no `answer`"):
        prepare_dataset(DatasetSource(path=str(tmp_path / "train.jsonl")), benchmarks_file(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_is_one_sentence_and_exit_code_2(tmp_path):
    settings = {"path": "Qwen/Qwen2.5-Math-1.5B-Instruct"}
    finished = run(
        "nested-reft", "prepare", "model", "--settings", json.dumps(settings), "--out", str(tmp_path / "m.json")
    )
    assert finished.returncode == 2
    assert "could not fetch 'Qwen/Qwen2.5-Math-1.5B-Instruct' from the hub" in finished.stderr
    assert "give its local path as `path` instead" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "m.json").exists()
    with pytest.raises(ConfigError, match="could not fetch 'openai/gsm8k'"):
        source = DatasetSource(path="openai/gsm8k", config_name="main")
        prepare_dataset(source, benchmarks_file(tmp_path), tmp_path / "out.jsonl")


def test_a_local_model_is_noted_with_its_shape(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "hidden_size": 8}))
    prepare_model(ModelSource(path=str(tmp_path)), tmp_path / "model.json")
    assert read_json(tmp_path / "model.json") == {"path": str(tmp_path), "num_layers": 3, "width": 8}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"problem": "p", "answer": "1"}\n\n{"problem"', "line 3 is not JSON"),
        ('{"problem": "p", "answer": null}\n', "row 1 has no `answer`"),
        ("", "has no rows"),
    ],
)
def test_a_broken_file_is_one_sentence(content, words, tmp_path):
    (tmp_path / "bench.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=words):
        prepare_benchmarks({"b": BenchmarkSource(path=str(tmp_path / "bench.jsonl"))}, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_downloaded_dataset_is_read_from_its_folder(tmp_path):
    import datasets

    (tmp_path / "hub").mkdir()
    rows = datasets.Dataset.from_list([{"problem": "p", "answer": 142.0}])
    rows.to_parquet(tmp_path / "hub" / "test-00000-of-00001.parquet")
    datasets.DatasetDict({"amc": rows}).save_to_disk(tmp_path / "disk")
    sources = {
        "hub": BenchmarkSource(path=str(tmp_path / "hub")),
        "disk": BenchmarkSource(path=str(tmp_path / "disk"), split="amc"),
    }
    prepare_benchmarks(sources, tmp_path / "out.jsonl")
    assert [row["answer"] for row in read_rows(tmp_path / "out.jsonl")] == [["142"], ["142"]]
    with pytest.raises(ConfigError, match="split 'math' cannot be read"):
        wrong = BenchmarkSource(path=str(tmp_path / "disk"), split="math")
        prepare_benchmarks({"disk": wrong}, tmp_path / "out.jsonl")


def test_embedded_splits_are_disjoint():
    from nested_reft.embedded.problems import KINDS, generate

    for kind in KINDS:
        train = {row.problem for row in generate(kind, "train", 400, seed=0)}
        benchmark = {row.problem for row in generate(kind, "benchmark", 400, seed=0)}
        assert len(train) == len(benchmark) == 400
        assert not train & benchmark


def test_embedded_solutions_are_right():
    from nested_reft.embedded.problems import generate

    rows = generate("mixed", "train", 900, seed=1)
    assert all(is_correct(row.solution, row.answer) for row in rows)
    for row in rows:
        for step in row.solution.split(". ")[:-1]:
            *expressions, value = step.split("is ")[-1].split("=")
            for expression in expressions:
                if "x" not in expression:
                    assert eval(expression) == int(value), row  # our own text: digits and operators


def test_slips_come_at_their_rate_and_keep_the_true_answer():
    from itertools import islice

    from nested_reft.embedded.problems import KINDS, stream

    rows = list(islice(stream("mixed", "train", 0, dict.fromkeys(KINDS, 0.6)), 3000))
    wrong = sum(not is_correct(row.solution, row.answer) for row in rows) / len(rows)
    assert abs(wrong - 0.6) < 0.03


@needs_data
def test_real_files_are_read_completely(tmp_path):
    counts = {"aime": 30, "amc": 83, "math": 500, "minerva": 272, "olympiad_bench": 675}
    sources = {name: BenchmarkSource(path=str(DATA / "math-eval"), split=name) for name in counts}
    prepare_benchmarks(sources, tmp_path / "benchmarks.jsonl")
    assert read_json(tmp_path / "benchmarks.manifest.json")["rows"] == counts
    benchmarks = pd.DataFrame(read_rows(tmp_path / "benchmarks.jsonl"))
    benchmarks.to_parquet(tmp_path / "records.parquet")  # answers are of one type
    amc = benchmarks[benchmarks["benchmark"] == "amc"]
    assert all(is_correct(f"\\boxed{{{answers[0]}}}", answers) for answers in amc["answer"])
    for path, rows in (("gsm8k/train.jsonl", 7473), ("svamp/SVAMP.json", 1000)):
        prepare_dataset(DatasetSource(path=str(DATA / path)), tmp_path / "benchmarks.jsonl", tmp_path / "out.jsonl")
        manifest = read_json(tmp_path / "out.manifest.json")
        assert manifest["rows"] + len(manifest["dropped"]) == rows


def test_the_embedded_model_is_in_the_repository():
    listed = run("git", "ls-files", "nested_reft/embedded/tiny-28").stdout.split()
    names = {path.split("/")[-1] for path in listed}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
