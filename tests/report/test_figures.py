"""The figures of a report."""

import pandas as pd

from nested_reft.report import figures
from tests.conftest import ROOT


def test_the_same_table_gives_the_same_figure_files(tmp_path):
    steps = pd.read_csv(ROOT / "docs/reports/embedded/steps.csv")
    for name in ("one", "two"):
        figures.save(figures.reward_curves(steps), tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_a_note_is_written_above_the_panels(tmp_path):
    steps = pd.read_csv(ROOT / "docs/reports/embedded/steps.csv")
    figure = figures.reward_curves(steps)
    height = figure.get_figheight()
    figures.save(figure, tmp_path / "reward", "Read with care.")
    assert "Read with care." in (tmp_path / "reward.svg").read_text()
    assert figure.get_figheight() > height  # the panels keep their size


def test_the_pareto_front_holds_what_no_point_beats_in_both():
    front = figures.pareto_front([(0.0, 0.0), (1.0, -1.0), (0.5, -2.0), (-1.0, 1.0), (-1.0, 0.5)])
    assert front == [(-1.0, 1.0), (0.0, 0.0), (1.0, -1.0)]
