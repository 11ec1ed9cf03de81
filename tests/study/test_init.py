"""The study that `init` writes from a model and data: valid, commented, and never over an existing file."""

import json
from pathlib import Path

import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.records.files import read_rows
from nested_reft.study.init import flow, names_of, plan_study, write_study
from tests.conftest import TINY


def additions(numbers: range) -> list[dict[str, str]]:
    """Return problems whose texts share five words in a row at most."""
    return [
        {"question": f"What is {n} plus {n + 1}?", "answer": f"{n} plus {n + 1} is <<{n}+{n + 1}>>.\n#### {2 * n + 1}"}
        for n in numbers
    ]


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """Return a working directory with a training set and a benchmark, both in the format of GSM8K."""
    monkeypatch.chdir(tmp_path)
    for name, rows in {"sums": additions(range(40)), "test": additions(range(50, 60))}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def plan(**changed):
    arguments = {"study": "mine", "models": ["embedded/tiny-28"], "data": "sums.jsonl", "benchmarks": ["test.jsonl"]}
    return plan_study(**(arguments | {"has_gpu": False} | changed))


def written(file: str) -> Study:
    return parse_settings(Study, yaml.safe_load(Path(file).read_text()))


def test_the_file_is_a_study_of_the_model_and_the_data(folder):
    write_study(plan(), replace=False)
    study = written("mine.yaml")
    assert study.study == "mine"
    assert study.models["tiny-28"].path == "embedded/tiny-28"
    assert study.datasets["sums"].path == "sums.jsonl"
    assert study.benchmarks["test"].path == "test.jsonl"
    assert (study.grid.model, study.grid.dataset) == (["tiny-28"], ["sums"])
    assert Path("mine.yaml").read_text().count("#") > 10
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml", "sums.jsonl", "test.jsonl"]


def test_the_file_is_in_the_folder_of_configs_where_there_is_one(folder):
    Path("config").mkdir()
    Path("config/schema.json").write_text("{}")
    write_study(plan(), replace=False)
    assert Path("config/mine.yaml").read_text().startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize(("has_gpu", "gpus", "dtype"), [(False, 0, "float32"), (True, 1, "bfloat16")])
def test_settings_are_for_the_machine(folder, has_gpu, gpus, dtype):
    study = parse_settings(Study, yaml.safe_load(plan(has_gpu=has_gpu).text))
    assert (study.jobs.gpus, study.evaluation.dtype) == (gpus, dtype)
    assert (study.training.bf16, study.sft.bf16) == (has_gpu, has_gpu)


def test_completions_are_as_long_as_the_longest_solution(folder):
    """The solution `7 plus 8 is. The answer is \\boxed{15}.` has fewer than 24 tokens and more than 16."""
    study = parse_settings(Study, yaml.safe_load(plan().text))
    assert study.training.max_completion_length == 24
    long = [{"problem": f"p{i}", "solution": "1+1 " * 500, "answer": "2"} for i in range(8)]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    study = parse_settings(Study, yaml.safe_load(plan(data="long.jsonl").text))
    assert study.training.max_completion_length == 256


def test_without_a_benchmark_problems_of_the_training_set_are_held_out(folder):
    rows = [*additions(range(40)), additions(range(1))[0]]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_study(plan(benchmarks=[]), replace=False)
    study = written("mine.yaml")
    train, test = (
        read_rows(Path(entry.path)) for entry in (study.datasets["sums"], study.benchmarks["sums-held-out"])
    )
    assert (len(train), len(test)) == (32, 8)  # of 40 different problems: the last row repeats the first
    assert not {row["problem"] for row in train} & {row["problem"] for row in test}
    assert test[0] == {"problem": "What is 4 plus 5?", "solution": "4 plus 5 is .\n", "answer": "9"}


def test_an_embedded_data_set_is_its_own_benchmark(folder):
    study = parse_settings(Study, yaml.safe_load(plan(data="embedded/one-step", benchmarks=[]).text))
    assert (study.datasets["one-step"].size, study.benchmarks["one-step"].size) == (480, 200)


def test_a_shared_sentence_of_a_template_is_no_contamination(folder):
    shared = "a b c d e f g h i j k l m n"  # 14 words
    for name, rows in {"sums": range(40), "test": range(50, 60)}.items():
        lines = [json.dumps({"problem": f"{n} {shared}", "solution": "s", "answer": str(n)}) + "\n" for n in rows]
        Path(f"{name}.jsonl").write_text("".join(lines))
    found = plan()
    assert yaml.safe_load(found.text)["decontamination"]["ngram"] == 15
    assert any("15 words in a row with a benchmark, and are left out: 0" in line for line in found.findings)


def test_the_findings_show_a_row_and_the_grid(folder):
    text = "\n".join(plan().findings)
    assert "sums.jsonl: 40 rows with the columns question, answer (format GSM8K)" in text
    assert "problem   What is 0 plus 1?" in text and "answer    1" in text
    assert "test.jsonl: 10 problems" in text
    assert "3 trainings" in text and "no GPU" in text


def test_existing_files_are_replaced_only_on_demand(folder):
    write_study(plan(benchmarks=[]), replace=False)
    Path("mine.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"mine.yaml exists already; choose another name for the study, or replace"):
        write_study(plan(benchmarks=[]), replace=False)
    assert Path("mine.yaml").read_text() == "mine"
    write_study(plan(), replace=True)
    assert written("mine.yaml").study == "mine"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": "nothing.jsonl"}, r"--data \(nothing.jsonl\) does not exist"),
        ({"models": ["nothing"]}, r"--model \(nothing\) does not exist"),
        ({"models": ["embedded/tiny-82"]}, "choose one of tiny-28, wide-20"),
        ({"benchmarks": ["nothing.jsonl"]}, r"--benchmark \(nothing.jsonl\) does not exist"),
        ({"data": "few.jsonl", "benchmarks": []}, "few.jsonl has 9 different problems, too few to hold out some"),
        ({"data": "columns.jsonl"}, "columns.jsonl: row 1 has the columns problem, answer, but needs"),
        ({"study": "two words"}, "config key `study` is 'two words'"),
        ({"benchmarks": ["test.jsonl", "test.jsonl"]}, "--benchmark test.jsonl is given twice; give it once"),
        ({"benchmarks": ["sums.jsonl"]}, "--data sums.jsonl has 0 problems that do not also occur in a benchmark"),
        ({"study": "mine.yaml"}, "the name of the study is 'mine.yaml'; leave the suffix out"),
        # they have the form of a name on the hub, where nothing must be looked up
        ({"data": "data/nothing.jsonl"}, "data/nothing.jsonl does not exist in"),
        ({"models": ["data/nothing"]}, "data/nothing does not exist in"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(folder, changed, words):
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in additions(range(9))))
    Path("columns.jsonl").write_text('{"problem": "p", "answer": "1"}\n')
    Path("data").mkdir()
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=words):
        write_study(plan(**changed), replace=False)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["data/sums.jsonl"], ["sums"]),
        (["a/test.jsonl", "b/test.json"], ["a-test", "b-test"]),
        (["owner/Some-Model.v2"], ["Some-Model.v2"]),
        (["./results/seed~0/model/"], ["model"]),
        (["données é.jsonl"], ["donn-es"]),
    ],
)
def test_a_source_is_named_by_the_end_of_its_path(paths, names):
    assert names_of(paths) == names


def test_values_are_written_so_that_yaml_reads_them_back():
    for value in ("2024", "true", "a'b", {"path": "x: y", "size": 3}, ["1e3"]):
        assert yaml.safe_load(f"key: {flow(value)}") == {"key": value}
        assert "\n" not in flow(value)


def test_a_local_model_is_named_by_its_folder(folder):
    study = parse_settings(Study, yaml.safe_load(plan(models=[str(TINY)]).text))
    assert study.models["tiny-28"].path == str(TINY)
    assert study.training.learning_rate == 1e-6  # only the embedded models need a larger one
