"""The mirror: which folder it is, what it has, and which of its entries are refused."""

import json
import os
from pathlib import Path

import pytest

from nested_reft.config.mirror import VARIABLE, broken_link, mirrored, use_mirror
from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.sections import DatasetSource, ModelSource
from nested_reft.config.study import Study
from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError
from tests.config.studies import changed, load
from tests.conftest import ROOT, TINY

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture()
def mirror(tmp_path, monkeypatch) -> Path:
    """Return a mirror in use, with the entry `owner/name` and no manifest."""
    (tmp_path / "mirror/owner/name").mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def test_a_study_names_the_mirror_and_the_variable_takes_precedence(tmp_path, monkeypatch):
    (tmp_path / "mirror/owner/tiny").parent.mkdir(parents=True)
    (tmp_path / "mirror/owner/tiny").symlink_to(TINY)
    monkeypatch.chdir(tmp_path)
    study = read_study(ROOT / "config/smoke.yaml", ["mirror=mirror", "models.tiny-28.path=owner/tiny"])
    assert study.models["tiny-28"].shape["num_hidden_layers"] == 28
    assert os.environ[VARIABLE] == str(tmp_path / "mirror")  # jobs may have another working directory
    use_mirror("another")
    assert mirrored("owner/tiny") == tmp_path / "mirror/owner/tiny"
    monkeypatch.setenv(VARIABLE, "")
    assert mirrored("owner/tiny") is None


def test_only_names_on_the_hub_are_in_a_mirror_and_local_paths_come_first(mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (mirror / "owner/.name.part").mkdir()
    (mirror / "embedded/mixed").mkdir(parents=True)
    assert mirrored("owner/name") == DatasetSource(path="owner/name").local_path == mirror / "owner/name"
    assert [mirrored(path) for path in ("owner/other", "owner/.name.part", "../mirror", "owner", "")] == [None] * 5
    assert DatasetSource(path="embedded/mixed", size=3).local_path is None
    (tmp_path / "owner/name").mkdir(parents=True)
    assert DatasetSource(path="owner/name").local_path == Path("owner/name")


def test_a_mirror_that_is_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"the mirror \S*none is not a folder; correct the config key `mirror` or"):
        mirrored("owner/name")


def test_an_entry_that_is_not_a_folder_is_one_sentence(mirror):
    (mirror / "owner/file").write_text("")
    (mirror / "owner/link").symlink_to("/nowhere/data")
    (mirror / "gone").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"the mirror has \S*owner/file as a file, which is not a folder; replace it"):
        mirrored("owner/file")
    with pytest.raises(UserError, match=r"owner/link as a symbolic link to /nowhere/data, which is not a folder"):
        mirrored("owner/link")
    with pytest.raises(UserError, match=r"mirror/gone as a symbolic link to /nowhere, which is not a folder"):
        mirrored("gone/name")


def test_a_link_inside_of_an_entry_that_leads_to_nothing_is_named(mirror):
    assert broken_link(mirror) == ""
    (mirror / "owner/name/config.json").symlink_to("/nowhere")
    assert broken_link(mirror).endswith("owner/name/config.json leads to nothing")
    with pytest.raises(UserError, match=r"owner/name.* config\.json of a language model; the symbolic link"):
        parse_settings(Study, changed("models.tiny-28.path", "owner/name"))


@pytest.mark.parametrize(
    ("manifest", "revision", "words"),
    [
        ({"revision": "v1", "commit": COMMIT}, "v1", None),
        ({"revision": None, "commit": COMMIT}, COMMIT, None),
        ({"revision": None, "commit": COMMIT}, COMMIT[:7], None),
        ({"revision": None, "commit": COMMIT}, None, None),
        (None, None, None),
        ({"revision": "v1", "commit": COMMIT}, "v2", "has revision v2, but the mirror has revision v1 in "),
        ({"revision": None, "commit": COMMIT}, "main", f"has revision main, but the mirror has revision {COMMIT} in "),
        ({"revision": None, "commit": COMMIT}, "0", f"has revision 0, but the mirror has revision {COMMIT} in "),
        (None, "v1", "has revision v1, but the mirror has an unknown revision in "),
    ],
)
def test_another_revision_than_that_of_the_study_is_refused(manifest, revision, words, mirror):
    if manifest:
        (mirror / "owner/name/.mirror.json").write_text(json.dumps(manifest))
    settings = changed("datasets.mixed", {"path": "owner/name", "revision": revision})
    if words is None:
        source = parse_settings(Study, settings).datasets["mixed"]
        assert source.known_revision == (COMMIT if manifest else None)
    else:
        with pytest.raises(UserError, match=rf"`datasets\.mixed` \(owner/name\) {words}\S*; change `revision`"):
            parse_settings(Study, settings)


def test_the_place_of_the_mirror_is_in_no_settings(tmp_path):
    plain = parse_settings(Study, load("config.yaml"))
    with_mirror = parse_settings(Study, changed("mirror", str(tmp_path)))
    assert with_mirror.mirror == str(tmp_path)
    assert canonical(with_mirror) == canonical(plain)
    source = DatasetSource(path="owner/name")
    assert source.model_dump().keys() == {"path", "revision", "size", "config_name", "split"}
    assert ModelSource(path="owner/name").model_dump().keys() == {"path", "revision", "sft_checkpoint"}
