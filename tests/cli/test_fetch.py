"""The command `fetch`: which folder it fills, and mistakes in naming it."""

import pytest
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.data import fetch
from tests.conftest import ROOT


def test_the_mirror_is_made_and_each_entry_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "fetch_entry", lambda entry, mirror: f"goes to {mirror / entry.path}")
    for changes, variable in ((["mirror=~/m"], ""), (["mirror=/other"], str(tmp_path / "m"))):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NESTED_REFT_MIRROR", variable)
        shown = CliRunner().invoke(app, ["fetch", str(ROOT / "config/paper.yaml"), *changes])
        assert shown.exit_code == 0, shown.exception
        assert f"[4/6] dataset openai/gsm8k goes to {tmp_path}/m/openai/gsm8k\n" in shown.stdout
        assert f"NESTED_REFT_MIRROR={tmp_path}/m nested-reft check" in shown.stdout
        assert (tmp_path / "m").is_dir()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            [],
            r"the study smoke names no mirror to fill; add its folder, for example `nested-reft fetch .* mirror=/scr",
        ),
        (["mirror=file/m"], r"the mirror file/m cannot be created \(Not a directory\); name another folder"),
        (["mirror=file"], r"the mirror file cannot be created \(File exists\); name another folder"),
    ],
)
def test_a_mirror_that_cannot_be_made_is_one_sentence(changes, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    shown = CliRunner().invoke(app, ["fetch", str(ROOT / "config/smoke.yaml"), *changes])
    with pytest.raises(type(shown.exception), match=words):
        raise shown.exception
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
