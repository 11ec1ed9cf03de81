"""A study in a YAML file, with changes: each mistake is one sentence that names the file and the line, or the key."""

import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.config.study_file import (
    as_snakemake_config,
    merged,
    read_changes,
    read_mapping,
    read_study,
    with_nulls,
)
from nested_reft.errors import UserError
from tests.config.studies import load
from tests.conftest import ROOT

CONFIG = ROOT / "config/config.yaml"


def test_changes_take_precedence_over_the_file_and_null_stays_null():
    study = read_study(CONFIG, ["grid.seed=3", "training.max_steps=5", "tracking.uri=null", "grid.mitigation=[base]"])
    assert (study.grid.seed, study.grid.mitigation, study.training.max_steps) == ([3], ["base"], 5)
    assert study.tracking.uri is None
    assert study.training.num_generations == 4  # as in the file


def test_snakemake_gets_the_same_study_by_its_option_config():
    from snakemake.cli import parse_config

    texts = ["grid.seed=[3, 4]", "training.learning_rate=2e-4", "training.bf16=true", "tracking.uri=null", "study=b"]
    changes = read_changes(texts)
    passed = parse_config(as_snakemake_config(changes))
    there = parse_settings(Study, with_nulls(merged(load("config.yaml"), passed)))
    assert there == read_study(CONFIG, texts)
    assert there.tracking.uri is None and there.study == "b"


BROKEN = {
    "a tab": ("study: a\n\tgrid: 3", "is not YAML: line 2 has a tab; indent with spaces"),
    "indentation": ("a:\n  b: 1\n c: 2\n", "is not YAML: line 3 is indented differently from the lines before it"),
    "two colons": ("a: b: c\n", "is not YAML: line 1 "),
    "a key twice": ("study: a\ngrid:\n  seed: 1\n  seed: 2\n", "is not YAML: line 4 repeats the key `seed`"),
    "a forbidden character": ("a: \x01", "is not YAML: unacceptable character"),
    "nothing": ("# nothing\n", "is empty; config/config.yaml is an example"),
    "a list": ("- a\n", "holds no keys such as `study: mine`"),
    "a list as key": ("? [a]\n: 3", "is not YAML: line 1 "),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_file_that_is_no_study_is_refused_with_its_name_and_line(mistake, tmp_path):
    text, words = BROKEN[mistake]
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_mapping(tmp_path / "mine.yaml")
    assert str(error.value).startswith(f"the config {tmp_path}/mine.yaml ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path, words in {
        tmp_path / "nope.yaml": "does not exist; its folder has ",
        tmp_path / "folder/nope.yaml": "does not exist; give the YAML file of a study",
        tmp_path: "is a folder; give the YAML file of a study",
        tmp_path / "binary.yaml": "is not text",
        tmp_path / "binary.yaml/mine.yaml": "cannot be read (Not a directory)",
    }.items():
        with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")):
            read_mapping(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training={max_steps:", "is not complete; quote it for the shell"),
        ("training", "'training' is not a change of a key"),
        ("training..x=3", "is not a change of a key"),
        ("seed=-1", "`seed` is not known; did you mean `grid.seed` or `evaluation.seed`?"),
        ("training.learning_rat=1", "did you mean `training.learning_rate`?"),
        ("gird.seed=3", "`gird` is not known; did you mean `grid`?"),
        ("models.tiny-28.pth=x", "did you mean `models.<name>.path`?"),
        ("grid.seed=three", "`grid.seed.0` is 'three'"),
        ("grid=null", "`grid` is null, but it should be a mapping"),
    ],
)
def test_a_wrong_change_is_one_sentence(change, words):
    with pytest.raises(UserError) as error:
        read_study(CONFIG, [change])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_shipped_config_is_read():
    for path in sorted((ROOT / "config").glob("*.yaml")):
        assert read_mapping(path) == yaml.safe_load(path.read_text())
