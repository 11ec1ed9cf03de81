"""JSON files with a schema version, and checksums."""

import pytest

from nested_reft.errors import UserError
from nested_reft.records.files import (
    SCHEMA_VERSION,
    checksum,
    read_json,
    read_versioned_json,
    write_json,
    write_versioned_json,
)


def test_a_versioned_file_holds_its_version_and_is_read_back_without_it(tmp_path):
    write_versioned_json(tmp_path / "run.json", {"uid": "a"})
    assert read_json(tmp_path / "run.json") == {"schema_version": SCHEMA_VERSION, "uid": "a"}
    assert read_versioned_json(tmp_path / "run.json") == {"uid": "a"}


@pytest.mark.parametrize(
    ("content", "version"), [({"uid": "a"}, "missing"), ({"schema_version": SCHEMA_VERSION + 1}, SCHEMA_VERSION + 1)]
)
def test_a_file_of_another_version_is_refused_in_one_sentence(content, version, tmp_path):
    write_json(tmp_path / "run.json", content)
    with pytest.raises(UserError) as refusal:
        read_versioned_json(tmp_path / "run.json")
    sentence = str(refusal.value)
    assert sentence.startswith(f"schema_version of {tmp_path / 'run.json'} is {version} but")
    assert f"reads {SCHEMA_VERSION}; run the stage that wrote the file again" in sentence
    assert "\n" not in sentence and ". " not in sentence


def test_a_file_that_was_cut_off_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"study": "a",\n "gri')
    with pytest.raises(UserError, match=r"config\.json is not JSON \(line 2: .*\); restore it, or make it again$"):
        read_json(tmp_path / "config.json")


def test_checksum_sees_names_and_content(tmp_path):
    (tmp_path / "a").write_text("x")
    before = checksum(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert checksum(tmp_path) != before
    (tmp_path / "b").write_text("y")
    (tmp_path / "b").rename(tmp_path / "a")
    assert checksum(tmp_path) != before
