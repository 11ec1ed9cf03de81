"""Whole reports, built from the files of a study and rebuilt from their own sources."""

import resource
import shutil
import subprocess
import sys

import pandas as pd
import yaml

from nested_reft.config import layout
from nested_reft.report import style
from nested_reft.report.build import write_page
from nested_reft.report.sources import read_sources
from tests import synthetic
from tests.conftest import ROOT


def test_the_report_alone_rebuilds_itself_without_torch_in_20_seconds(made_up, tmp_path):
    """The sources are copied, and nothing else; the tables come out the same, byte for byte."""
    report = tmp_path / "copy"
    report.mkdir()
    for name in (*layout.SOURCES, *layout.DETAILS):
        shutil.copy(made_up / "report" / name, report)
    program = (
        "import sys; sys.argv = ['nested-reft', 'analyse', '--from', sys.argv[1]]\n"
        "from nested_reft.cli import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'trl', 'mlflow'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", program, str(report)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # of the process: the machine may be busy with others
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20
    names = sorted(path.name for path in (made_up / "report").iterdir())
    assert sorted(path.name for path in report.iterdir()) == names
    for name in names:
        assert (report / name).read_bytes() == (made_up / "report" / name).read_bytes(), name


def test_the_page_alone_is_that_of_the_whole_report_and_draws_no_png(made_up, tmp_path, monkeypatch):
    monkeypatch.delattr(style, "save")  # the function that writes the PNG file
    write_page(read_sources(made_up / "report"), tmp_path / "new/page.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new/page.html").read_bytes() == (made_up / "report/report.html").read_bytes()


def test_the_yaml_of_a_study_is_settings_enough(tmp_path):
    """As for a study with missing runs, which Snakemake would not analyse."""
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path / "results")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study.model_dump()))
    program = [sys.executable, "-m", "nested_reft", "analyse", "--settings"]
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "report")]
    done = subprocess.run([*program, str(tmp_path / "mine.yaml"), *places], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/report: the report of study 'synthetic'; nothing is missing\n"
    assert "of which 10 are here" in (tmp_path / "report/findings.rst").read_text()
    done = subprocess.run([*program, "-", *places], input="study: [", cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_committed_reports_are_what_their_sources_give(rebuilt):
    """A change of a table or of a text is committed together with the rebuilt reports (`analyse --from`)."""
    committed, out = rebuilt
    made = {path.name for path in out.iterdir()}
    assert made == {path.name for path in committed.iterdir()} - {*layout.SOURCES, *layout.DETAILS}
    for path in out.glob("*.csv"):
        # the last digits are those of the machine's linear algebra
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(committed / path.name), rtol=1e-5)
    for path in out.glob("*.rst"):
        assert path.read_text() == (committed / path.name).read_text(), path.name
