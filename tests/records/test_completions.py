"""The record of completions: its files, what a resumed training does with them, and damaged records."""

import pyarrow as pa
import pytest

from nested_reft.errors import UserError
from nested_reft.records.completions import CompletionLog, completion_files, read_completions
from nested_reft.records.files import output_checksums, write_json, write_rows


def rows(step, text="a"):
    return pa.table({"step": pa.array([step] * 3, pa.int32()), "completion": [f"{text}{step}"] * 3})


def write(run, steps, saves=(), total_limit=500, text="a"):
    """Write the record of a training that begins or resumes before these steps, and saves checkpoints after some."""
    log = CompletionLog(run / "completions", total_limit)
    log.resume_at(steps[0] - 1)
    for step in steps:
        log.add(step, rows(step, text), step in saves)
    return [file.path.name for file in completion_files(run / "completions")]


def finish(run, last):
    """Write what a finished training has besides its record."""
    write_rows(run / "metrics.jsonl", [{"step": step} for step in range(1, last + 1)])
    write_json(run / "run.json", {"settings": SETTINGS, "outputs": output_checksums(run)})


SETTINGS = {"training": {"log_completions": True}}


def begin(run):
    """Write what an unfinished training has besides its record."""
    (run / "checkpoints").mkdir()
    write_json(run / "checkpoints/started.json", {"fingerprint": '[{"training": {"log_completions": true}}, {}]'})


def texts(run):
    return {step: table["completion"].unique().to_pylist() for step, table in read_completions(run)}


def test_a_file_ends_after_ten_steps_and_at_each_checkpoint(tmp_path):
    names = write(tmp_path, range(1, 31), saves=(15, 30))
    assert names == [
        *("completions_00001-00010.parquet", "completions_00011-00015.parquet"),
        *("completions_00016-00025.parquet", "completions_00026-00030.parquet"),
    ]
    finish(tmp_path, 30)
    assert texts(tmp_path) == {step: [f"a{step}"] for step in range(1, 31)}


def test_a_resumed_training_replaces_the_files_after_its_checkpoint(tmp_path):
    write(tmp_path, range(1, 29), saves=(15,))  # killed in step 29: the steps after 25 are in no file
    (tmp_path / "completions/completions_00026-00030.parquet.part").write_text("cut")
    names = write(tmp_path, range(16, 31), saves=(30,), text="b")
    assert names[1:] == ["completions_00011-00015.parquet", *names[2:]] and len(names) == 4
    finish(tmp_path, 30)
    found = texts(tmp_path)
    assert found == {step: [f"{'a' if step <= 15 else 'b'}{step}"] for step in range(1, 31)}
    assert not list(tmp_path.glob("completions/*.part"))
    # A training that begins again keeps nothing.
    assert write(tmp_path, range(1, 11), text="c") == ["completions_00001-00010.parquet"]


@pytest.mark.parametrize(("total_limit", "first"), [(20, 11), (25, 11), (29, 11), (3, 28), (500, 1)])
def test_only_the_last_steps_are_kept(tmp_path, total_limit, first):
    write(tmp_path, range(1, 31), saves=(30,), total_limit=total_limit)
    kept = [step for file in completion_files(tmp_path / "completions") for step in range(file.first, file.last + 1)]
    assert kept == list(range(first, 31)) and len(kept) <= total_limit
    finish(tmp_path, 30)
    assert list(texts(tmp_path)) == kept


def test_a_damaged_record_is_refused_by_name(tmp_path):
    write(tmp_path, range(1, 31), saves=(30,))
    finish(tmp_path, 30)
    first, second, last = (file.path for file in completion_files(tmp_path / "completions"))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match="completions lacks the file with the completions of steps 11 to 20; restore"):
        texts(tmp_path)
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"completions_00011-00020\.parquet is cut short or damaged"):
        texts(tmp_path)
    second.write_bytes(content)
    ending = last.read_bytes()
    last.unlink()
    with pytest.raises(UserError, match="lacks the file with the completions of steps 21 to 30"):
        texts(tmp_path)
    last.write_bytes(ending)
    first.unlink()  # as if these steps were beyond the limit; only the checksum knows
    with pytest.raises(UserError, match="completions is not what its stage wrote"):
        texts(tmp_path)


def test_an_unfinished_training_is_read_as_far_as_it_is(tmp_path):
    begin(tmp_path)
    with pytest.raises(UserError, match="has not written completions yet; wait until it has made 10 steps"):
        texts(tmp_path)
    write(tmp_path, range(1, 14))
    assert list(texts(tmp_path)) == list(range(1, 11))


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a training; give a folder such as results/<study>/tr"):
        texts(tmp_path)
    write_json(tmp_path / "run.json", {"settings": {"training": {}}})
    with pytest.raises(UserError, match=r"has no record of its completions; set training\.log_completions to true"):
        texts(tmp_path)
