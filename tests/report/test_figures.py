"""The figures of a report."""

import pytest

from nested_reft.config import layout
from nested_reft.report import style
from nested_reft.report.figures import FIGURES, accuracy, training
from nested_reft.report.sources import Sources, read_sources
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def embedded() -> Sources:
    """Return the sources of the committed report."""
    return read_sources(ROOT / "docs/reports/embedded")


def test_the_rules_declare_the_figures_that_are_drawn():
    assert list(FIGURES) == list(layout.FIGURES)


def test_the_same_table_gives_the_same_figure_files(embedded, tmp_path):
    for name in ("one", "two"):
        style.save(training.reward_curves(embedded, {}), tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_a_note_is_written_above_the_panels(embedded, tmp_path):
    figure = training.reward_curves(embedded, {})
    height = figure.get_figheight()
    style.save(figure, tmp_path / "reward", "Read with care.")
    assert "Read with care." in (tmp_path / "reward.svg").read_text()
    assert figure.get_figheight() > height  # the panels keep their size


def test_the_pareto_front_holds_what_no_point_beats_in_both():
    front = accuracy.pareto_front([(0.0, 0.0), (1.0, -1.0), (0.5, -2.0), (-1.0, 1.0), (-1.0, 0.5)])
    assert front == [(-1.0, 1.0), (0.0, 0.0), (1.0, -1.0)]
