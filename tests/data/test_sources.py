"""Sources of rows: files, downloaded datasets, the hub, and the errors for what cannot be read."""

import json

import pytest

from nested_reft.config.mirror import VARIABLE
from nested_reft.config.sections import BenchmarkSource, DatasetSource, Decontamination
from nested_reft.data.formats import benchmark_row
from nested_reft.data.prepare import prepare_benchmarks, prepare_dataset
from nested_reft.data.sources import load_rows, parsed_rows, read_file
from nested_reft.errors import UserError
from nested_reft.records.files import read_rows
from tests.conftest import run
from tests.data.rows import benchmarks_file, math, write_lines


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
    assert "run `nested-reft fetch` where there is a network and name its folder as `mirror`" in finished.stderr
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


TRAIN, TEST = [math("p"), math("q")], [math("r")]


def saved_splits(folder):
    """Save two splits by `save_to_disk`."""
    import datasets

    splits = {"train": datasets.Dataset.from_list(TRAIN), "test": datasets.Dataset.from_list(TEST)}
    datasets.DatasetDict(splits).save_to_disk(folder)


def saved_configuration(folder):
    """Save two splits by `save_to_disk` in the folder of the configuration."""
    saved_splits(folder / "main")


def split_files(folder):
    """Write `<split>.jsonl` files."""
    write_lines(folder / "train.jsonl", TRAIN)
    write_lines(folder / "test.jsonl", TEST)


def snapshot(folder):
    """Write Parquet files and a card with two configurations, as a dataset on the hub has them."""
    import datasets

    for name in ("main", "other"):
        (folder / name).mkdir()
        for split, rows in {"train": TRAIN, "test": TEST}.items():
            datasets.Dataset.from_list(rows[: 9 if name == "main" else 1]).to_parquet(
                folder / name / f"{split}-0.parquet"
            )
    files = [f"  - {{split: {split}, path: NAME/{split}-*}}\n" for split in ("train", "test")]
    parts = [
        f"- config_name: {name}\n  data_files:\n{''.join(files).replace('NAME', name)}" for name in ("main", "other")
    ]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(parts)}---\n")
    (folder / ".mirror.json").write_text("{}")  # not data


@pytest.fixture()
def entry(tmp_path, monkeypatch):
    """Return the empty folder of `owner/name` in a mirror."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
    (tmp_path / "mirror/owner/name").mkdir(parents=True)
    return tmp_path / "mirror/owner/name"


@pytest.mark.parametrize("layout", [saved_splits, saved_configuration, split_files, snapshot])
def test_each_layout_of_a_mirror_has_its_splits(layout, entry):
    layout(entry)
    assert load_rows(DatasetSource(path="owner/name", config_name="main")) == TRAIN
    assert load_rows(BenchmarkSource(path="owner/name", config_name="main")) == TEST
    with pytest.raises(UserError, match=r"owner/name(/main)?: .* 'aime'.*(train|test).*(train|test)"):
        load_rows(BenchmarkSource(path="owner/name", config_name="main", split="aime"))


def test_one_saved_split_of_a_mirror_is_not_another_split(entry):
    import datasets

    datasets.Dataset.from_list(TRAIN, split="train").save_to_disk(entry)
    assert load_rows(DatasetSource(path="owner/name")) == TRAIN
    with pytest.raises(UserError, match="owner/name: has no split 'test'; it was saved as the split 'train'"):
        load_rows(BenchmarkSource(path="owner/name"))
    assert load_rows(BenchmarkSource(path=str(entry))) == TRAIN  # a local path names the folder itself


def test_a_file_of_a_mirror_that_is_a_broken_link_is_named(entry):
    (entry / "test.jsonl").symlink_to("/nowhere")
    with pytest.raises(
        UserError, match=r"split 'test' cannot be read .* link \S*test\.jsonl leads to nothing\); correct"
    ):
        load_rows(BenchmarkSource(path="owner/name"))


def test_what_a_mirror_lacks_is_named_with_the_remedy(entry):
    with pytest.raises(
        UserError, match=r"could not fetch 'owner/none' .*, and the mirror .* does not have it; run `nes"
    ):
        load_rows(BenchmarkSource(path="owner/none"))


def test_rows_are_counted_from_the_first_of_the_file(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [math(f"p{number}") for number in range(10)])

    def selected(**settings):
        rows = parsed_rows(BenchmarkSource(path=path, **settings), benchmark_row)
        return [(row["row"], row["problem"]) for row in rows]

    assert selected(rows="7:10") == selected(rows="7:") == [(8, "p7"), (9, "p8"), (10, "p9")]
    assert selected(rows="7:10", size=1) == [(8, "p7")]
    assert selected(rows=":2") == selected(size=2) == [(1, "p0"), (2, "p1")]
    for rows in ("7:11", "10:", "10:12"):
        with pytest.raises(UserError, match=f"rows.jsonl: has 10 rows, but `rows` is {rows}; give smaller numbers"):
            selected(rows=rows)
