"""Prepared training sets, benchmarks and models: files, manifests, and errors that leave no file behind."""

import json
import re

import pandas as pd
import pytest

from nested_reft.config.sections import BenchmarkSource, DatasetSource, Decontamination, ModelSource
from nested_reft.data.formats import training_row
from nested_reft.data.prepare import prepare_benchmarks, prepare_dataset, prepare_model, with_box
from nested_reft.data.sources import parsed_rows
from nested_reft.errors import UserError
from nested_reft.grading.grade import is_correct
from nested_reft.records.files import checksum, read_json, read_rows
from tests.conftest import DATA, needs_data, run
from tests.data.rows import SVAMP_ROW, benchmarks_file, math, prepared, write_lines


@pytest.mark.parametrize(
    ("solution", "answer", "expected"),
    [
        (r"So $\boxed{7}$ pens.", "7", r"So $\boxed{7}$ pens."),
        (r"So $\boxed{7}$ pens.", "8", r"So ${7}$ pens. The answer is \boxed{8}."),
        (r"First $\boxed{3}$, then $\boxed{7}$.", "7", r"First ${3}$, then ${7}$. The answer is \boxed{7}."),
        (r"It is $\boxed 7$", "7", r"It is $ 7$ The answer is \boxed{7}."),
        ("It is 7\n", "7", r"It is 7. The answer is \boxed{7}."),
    ],
)
def test_a_solution_boxes_the_answer_and_nothing_else(solution, answer, expected):
    assert with_box(solution, answer) == expected
    assert is_correct(expected, answer)


def test_the_manifest_tells_the_files_apart(tmp_path):
    _, _, manifest = prepared(tmp_path, [math("a"), math("b")], revision="v1")
    assert manifest["revision"] == "v1"
    files = {"rows": "out.jsonl", "dropped": "out.dropped.jsonl", "benchmarks": "benchmarks.jsonl"}
    assert manifest["sha256"] == {name: checksum(tmp_path / file) for name, file in files.items()}
    assert read_json(tmp_path / "benchmarks.manifest.json") == {
        "rows": {"b": 1},
        "revision": {"b": None},
        "sha256": checksum(tmp_path / "benchmarks.jsonl"),
    }
    assert prepared(tmp_path, [math("a"), math("c")])[2]["sha256"]["rows"] != manifest["sha256"]["rows"]


GOOD = json.dumps(math("p"))


MISTAKES = {
    "no answer": (
        '{"problem": "p", "solution": "s"}',
        "row 1 has the columns problem, solution, but needs problem",
    ),
    "empty answer": (f"{GOOD}\n{json.dumps(math('q', ' '))}", "row 2 has an empty `answer`; fill it in"),
    "null answer": (json.dumps(math("p", None)), "row 1 has an empty `answer`"),
    "missing number": ('{"problem": "p", "solution": "s", "answer": NaN}', "row 1 has an empty `answer`"),
    "list as answer": (json.dumps(math("p", ["1"])), r"row 1 has \['1'\] as `answer`, which is not text"),
    "yes": (json.dumps(math("p", True)), "row 1 has True as `answer`, which is not text"),
    "number": (json.dumps(math(12)), "row 1 has 12 as `problem`, which is not text; correct it"),
    "list": (f"{GOOD}\n{json.dumps(math('q', '1', ['s']))}", r"row 2 has \['s'\] as `solution`, which is not text"),
    "no object": (f'{GOOD}\n"q"', "row 2 is 'q', which is not an object with columns"),
    "broken line": (f'{GOOD}\n\n{{"problem"', "line 3 is not JSON"),
    "broken list": (f'[{GOOD},\n{{"problem"]', "line 2 is not JSON"),
    "no rows": ("\n", "has no rows; choose another file"),
    "no mark": ('{"question": "p", "answer": "4"}', "row 1 has an `answer` without the last line `#### value`"),
    "mark alone": ('{"question": "p", "answer": "#### 4"}', "row 1 has an empty `answer`"),
    "nothing after the mark": ('{"question": "p", "answer": "Four.\\n####"}', "row 1 has an empty `answer`"),
    "no number": (json.dumps(SVAMP_ROW | {"Answer": "many"}), "row 1 has 'many' as `Answer`, which is not a number"),
    "no equation": (json.dumps(SVAMP_ROW | {"Equation": "a + b"}), "row 1 has the equation 'a . b', which cannot be"),
    "all in a benchmark": (json.dumps(math("Never trained on?")), "no row is left of 1, .* and 1 are in a benchmark"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_training_set_is_one_sentence_and_nothing_is_written(mistake, tmp_path):
    content, words = MISTAKES[mistake]
    (tmp_path / "train.jsonl").write_text(content)
    before = {benchmarks_file(tmp_path), *tmp_path.iterdir()}
    source = DatasetSource(path=str(tmp_path / "train.jsonl"))
    with pytest.raises(UserError, match=f"^{re.escape(source.path)}: {words}") as error:
        prepare_dataset(source, Decontamination(), tmp_path / "benchmarks.jsonl", tmp_path / "out.jsonl")
    assert "\n" not in str(error.value)
    assert set(tmp_path.iterdir()) == before


def test_a_mistake_in_a_dataset_ends_the_command_with_exit_code_2(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", [math("p"), math("q", "")])
    settings = {"dataset": {"path": path}, "decontamination": {}}
    arguments = {"settings": json.dumps(settings), "benchmarks": str(benchmarks_file(tmp_path))}
    arguments["out"] = str(tmp_path / "out.jsonl")
    options = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    finished = run("nested-reft", "prepare", "dataset", *options)
    assert finished.returncode == 2
    assert finished.stderr == f"Error: {path}: row 2 has an empty `answer`; fill it in or remove the row\n"
    assert not list(tmp_path.glob("out*"))


def test_a_local_model_is_noted_with_its_shape(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "hidden_size": 8}))
    prepare_model(ModelSource(path=str(tmp_path)), tmp_path / "model.json")
    assert read_json(tmp_path / "model.json") == {"path": str(tmp_path), "num_layers": 3, "width": 8}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"problem": "p", "answer": "1"}\n\n{"problem"', "line 3 is not JSON"),
        ('{"problem": "p", "answer": null}\n', "row 1 has an empty `answer`"),
        ('{"problem": "p", "answer": []}\n', "row 1 has an empty `answer`"),
        ('{"problem": "p", "answer": ["1", ""]}\n', "row 1 has an empty `answer`"),
        ('{"problem": 7, "answer": "1"}\n', "row 1 has 7 as `problem`, which is not text"),
        ('{"problem": "p"}\n', "row 1 has the columns problem, but needs"),
        ("", "has no rows"),
    ],
)
def test_a_broken_benchmark_is_one_sentence(content, words, tmp_path):
    (tmp_path / "bench.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        prepare_benchmarks({"b": BenchmarkSource(path=str(tmp_path / "bench.jsonl"))}, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


REAL_BENCHMARKS = {"aime": 30, "amc": 83, "math": 500, "minerva": 272, "olympiad_bench": 675}


@pytest.fixture(scope="module")
def real_benchmarks(real_mirror, tmp_path_factory):
    """Return the file of the five real benchmarks."""
    out = tmp_path_factory.mktemp("real") / "benchmarks.jsonl"
    sources = {name: BenchmarkSource(path="lkevinzc/math-eval", split=name) for name in REAL_BENCHMARKS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NESTED_REFT_MIRROR", str(real_mirror))
        prepare_benchmarks(sources, out)
    return out


@pytest.mark.data
@needs_data
def test_real_benchmarks_are_read_completely(real_benchmarks, tmp_path):
    benchmarks = pd.DataFrame(read_rows(real_benchmarks))
    assert benchmarks["benchmark"].value_counts(sort=False).to_dict() == REAL_BENCHMARKS
    assert benchmarks["problem"].str.strip().all()
    benchmarks.to_parquet(tmp_path / "records.parquet")  # answers are of one type
    answers = benchmarks["answer"].explode()
    assert (answers.str.strip() == answers).all() and answers.all()
    amc = benchmarks.loc[benchmarks["benchmark"] == "amc", "answer"]
    assert all(re.fullmatch(r"-?\d+(\.\d*[1-9])?", answer) for (answer,) in amc)
    enclosed = benchmarks.loc[benchmarks["benchmark"] == "olympiad_bench", "answer"].str[0]
    assert not enclosed.str.fullmatch(r"\$[^$]*\$").any()


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(
    ("named", "rows", "lost"),
    [
        ({"path": "openai/gsm8k", "config_name": "main"}, 7473, {}),
        ({"path": "openai/gsm8k", "config_name": "main", "split": "test"}, 1319, {}),
        ({"path": "ChilleD/SVAMP"}, 1000, {"contradictions": 1}),  # the one whose equation does not give its answer
        ({"path": "ChilleD/SVAMP", "rows": "700:1000"}, 300, {}),
        ({"path": str(DATA / "svamp/svamp_nl.json")}, 3076, {"duplicates": 134, "contradictions": 2}),
    ],
)
def test_real_training_sets_are_read_completely_and_teach_their_answers(
    named, rows, lost, real_benchmarks, real_mirror, monkeypatch, tmp_path
):
    monkeypatch.setenv("NESTED_REFT_MIRROR", str(real_mirror))
    source = DatasetSource(**named)
    everything = parsed_rows(source, training_row)
    assert len(everything) == rows
    wrong = [
        row["row"]
        for row in everything
        if not is_correct(with_box(row["solution"], row["answer"]), row["answer"]) or not row["problem"].strip()
    ]
    assert not wrong
    prepare_dataset(source, Decontamination(), real_benchmarks, tmp_path / "out.jsonl")
    kept = read_rows(tmp_path / "out.jsonl")
    counts = {"read": rows, "duplicates": 0, "contradictions": 0, "dropped": 0} | lost
    counts["kept"] = rows - sum(lost.values())
    assert read_json(tmp_path / "out.manifest.json")["rows"] == counts
    assert len(kept) == counts["kept"]
    assert len(read_rows(tmp_path / "out.dropped.jsonl")) == rows - len(kept)
    for row in kept:
        assert row.keys() == {"problem", "solution", "answer"} and all(row.values())
        assert row["solution"].endswith(f"\\boxed{{{row['answer']}}}.")
        assert "<<" not in row["solution"] and "####" not in row["solution"]
        assert "answer is <" not in row["solution"]
