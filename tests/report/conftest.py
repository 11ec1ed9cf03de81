"""One made-up study, which the tests of the report read."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from nested_reft.report import build, style
from tests import synthetic
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a made-up study of 60 runs over 2 seeds (one model, three datasets), and its report."""
    folder = tmp_path_factory.mktemp("made-up")
    study = synthetic.study(models=1)
    synthetic.write(study, folder / "results")
    build.report(study, folder / "results", folder / "report")
    return folder


@pytest.fixture(scope="session", params=["embedded", "embedded-full"])
def rebuilt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of a committed report, and a folder with everything that its sources give."""
    committed, out = ROOT / "docs/reports" / request.param, tmp_path_factory.mktemp(request.param)

    def save_without_png(figure: Figure, path: Path, note: str = "") -> str:
        svg = style.as_svg(figure, note)
        path.with_suffix(".svg").write_text(svg)
        path.with_suffix(".png").touch()  # no test reads it
        return svg

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", save_without_png)
        build.rebuild(committed, out)
    return committed, out
