"""Which study `nested-reft report` shows, and the page of a study with a missing and a failed run."""

import os

import pytest
import yaml

from nested_reft.errors import UserError
from nested_reft.report.locate import newest_study
from tests import synthetic
from tests.conftest import run
from tests.report.test_page import break_study, plain


def test_a_broken_study_has_a_report_that_lists_what_is_missing_and_why(tmp_path):
    missing, failed = break_study(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/mine.yaml").write_text(
        yaml.safe_dump(synthetic.study(models=1, datasets=1).model_dump(mode="json"))
    )
    done = run("nested-reft", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "report.html: the report of study 'synthetic', in which 2 runs are missing; it lists them\n"
    html = (tmp_path / "report.html").read_text()
    listed = plain(html.split('<section id="missing"')[1].split("</section>")[0])
    assert f"{failed}: the disk is full" in listed and f"{missing}: no job has started" in listed
    assert plain(html.split('<div class="answer">')[1]).startswith("Interim: 18 of 20 runs are finished; ")
    assert "18 of 20 runs" in plain(html)
    assert "2 of 20 runs are missing; " in plain(html)
    assert not (tmp_path / "reports").exists()  # Snakemake writes that folder


def test_without_an_argument_it_is_the_study_that_was_run_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run a study first"):
        newest_study()
    made = ["reports/old/provenance.json", "results/old/train/metrics.json", "results/new/train/metrics.json"]
    for age, name in enumerate(reversed(made)):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    with pytest.raises(UserError, match="describes the study 'new'"):
        newest_study()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/any.yaml").write_text("study: new\n")
    assert str(newest_study()) == "config/any.yaml"
    os.utime(tmp_path / made[0])
    assert str(newest_study()) == "reports/old"


@pytest.mark.parametrize(
    ("argument", "words"),
    [("none.yaml", "none.yaml does not exist"), (".", "has no results.csv"), ("text.yaml", "holds no keys")],
)
def test_a_wrong_study_is_one_sentence(argument, words, tmp_path):
    (tmp_path / "text.yaml").write_text("no study\n")
    done = run("nested-reft", "report", argument, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
