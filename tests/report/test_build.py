"""Whole reports, built from the files of a study and rebuilt from their own sources."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config import layout
from nested_reft.errors import UserError
from nested_reft.report import build, page, style
from nested_reft.report.build import draw_figure, write_page
from nested_reft.report.figures import figures_of_study
from nested_reft.report.figures.common import Tables
from nested_reft.report.sources import Sources, read_sources
from tests import synthetic
from tests.conftest import ROOT


def test_the_report_alone_rebuilds_itself_without_torch(made_up, tmp_path):
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
    done = subprocess.run([sys.executable, "-c", program, str(report)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (made_up / "report").iterdir())
    assert sorted(path.name for path in report.iterdir()) == names
    for name in names:
        assert (report / name).read_bytes() == (made_up / "report" / name).read_bytes(), name


def test_the_page_alone_is_that_of_the_whole_report_and_draws_no_png(made_up, tmp_path, monkeypatch):
    monkeypatch.delattr(style, "save")  # the function that writes the PNG file
    write_page(read_sources(made_up / "report"), tmp_path / "new/page.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new/page.html").read_bytes() == (made_up / "report/report.html").read_bytes()


def test_the_yaml_of_a_study_is_settings_enough(tmp_path, monkeypatch):
    """As for a study with missing runs, which Snakemake would not analyse. Only the figure that leads is drawn."""

    def draw_forest(sources: Sources, tables: Tables, out: Path) -> dict[str, str]:
        drawn = {name: draw_figure(name, sources, tables, out) for name in ("forest", page.NARROW_LEAD)}
        return dict.fromkeys(figures_of_study(sources.config), "It is not drawn here.") | drawn

    monkeypatch.setattr(build, "draw_figures", draw_forest)
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path / "results")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study.model_dump()))
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "report")]
    done = CliRunner().invoke(app, ["analyse", "--settings", str(tmp_path / "mine.yaml"), *places])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path}/report: the report of study 'synthetic'; nothing is missing\n"
    assert "of which 10 are here" in (tmp_path / "report/findings.rst").read_text()
    done = CliRunner().invoke(app, ["analyse", "--settings", "-", *places], input="study: [")
    assert isinstance(done.exception, UserError) and "--settings is not JSON" in str(done.exception)


TEXTS = (".csv", ".md", ".tex", ".html", ".rst")


def test_the_committed_reports_are_what_their_sources_give(rebuilt):
    """A change of a table or of a text is committed together with the rebuilt reports (`analyse --from`).

    The page holds the figures, which depend on the fonts of the machine.
    """
    committed, out = rebuilt
    made = {path.name for path in out.iterdir()}
    assert made == {path.name for path in committed.iterdir()} - {*layout.SOURCES, *layout.DETAILS}
    texts = [path for path in out.iterdir() if path.suffix in TEXTS and path.name != layout.PAGE]
    assert len(texts) > 70
    for path in texts:
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


@pytest.mark.skipif(
    "openblas" not in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    or platform.machine() != "x86_64",
    reason="the kernels of another library of linear algebra are not chosen by OPENBLAS_CORETYPE",
)
def test_another_kernel_of_linear_algebra_writes_the_same_bytes(tmp_path):
    """Prescott's kernels, which every processor of this kind can run, add in another order than those in use today."""
    program = (
        "import sys; from pathlib import Path\n"
        "from nested_reft.report import build, captions\n"
        "from nested_reft.report.sources import read_sources\n"
        "sources = read_sources(Path(sys.argv[1])); tables = build.make_tables(sources)\n"
        "build.write_texts(sources, tables, captions.report_facts(sources, tables), Path(sys.argv[2]))"
    )
    committed = ROOT / "docs/reports/embedded-full"
    kernel = {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(committed), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | kernel, check=True)
    texts = list(tmp_path.iterdir())
    assert len(texts) > 70
    for path in texts:
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name
