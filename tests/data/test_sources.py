"""Sources of rows: files, downloaded datasets, the hub, and the errors for what cannot be read."""

import json

import pytest

from nested_reft.config.sections import BenchmarkSource, DatasetSource, Decontamination
from nested_reft.data.prepare import prepare_benchmarks, prepare_dataset
from nested_reft.data.sources import load_rows, read_file
from nested_reft.errors import UserError
from nested_reft.records.files import read_rows
from tests.conftest import run
from tests.data.rows import benchmarks_file


def test_a_file_that_is_not_text_is_one_sentence(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(UserError, match=r"train\.parquet: is not UTF-8 text; save a text as UTF-8, or convert"):
        read_file(tmp_path / "train.parquet")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rows.csv", "problem,answer\n1+1,2\n", "rows.csv: is a table of text; convert it to JSON lines"),
        ("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", "rows.jsonl: is a pointer of Git LFS"),
    ],
)
def test_a_file_of_another_kind_is_named(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_file(tmp_path / name)


def test_a_folder_without_the_split_names_those_that_it_has(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"problem": "1+1", "answer": "2"}])
    datasets.DatasetDict({"aime": rows, "amc": rows}).save_to_disk(tmp_path / "suite")
    with pytest.raises(UserError, match="suite: has no split 'test'; its splits are aime, amc"):
        load_rows(BenchmarkSource(path=str(tmp_path / "suite")))


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
    with pytest.raises(UserError, match="could not fetch 'openai/gsm8k'"):
        source = DatasetSource(path="openai/gsm8k", config_name="main")
        prepare_dataset(source, Decontamination(), benchmarks_file(tmp_path), tmp_path / "out.jsonl")


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
    with pytest.raises(UserError, match="has no split 'math'; its splits are amc"):
        wrong = BenchmarkSource(path=str(tmp_path / "disk"), split="math")
        prepare_benchmarks({"disk": wrong}, tmp_path / "out.jsonl")
    empty = datasets.Dataset.from_list([{"problem": "p", "answer": "1"}, {"problem": "q", "answer": None}])
    datasets.DatasetDict({"aime": empty}).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match=r"empty, split 'aime': row 2 has an empty `answer`"):
        torn = BenchmarkSource(path=str(tmp_path / "empty"), split="aime")
        prepare_benchmarks({"torn": torn}, tmp_path / "torn.jsonl")


def test_a_file_from_windows_is_read_and_one_object_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\r\n{"a": 2}\r\n', encoding="utf-8-sig")
    assert read_file(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]
    (tmp_path / "rows.json").write_text('{\n "data": []\n}')
    with pytest.raises(UserError, match="is one JSON object, but should be a list of objects"):
        read_file(tmp_path / "rows.json")
