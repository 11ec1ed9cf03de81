"""The figures of a report: which are drawn, and whether all of their text can be read."""

import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from nested_reft.config import layout
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.report import style
from nested_reft.report.build import make_tables
from nested_reft.report.collect import collect
from nested_reft.report.contents import contents
from nested_reft.report.figures import FIGURES, figures_of_study
from nested_reft.report.figures.accuracy import forest, heat_map
from nested_reft.report.figures.common import mark_missing, name_axes, panels
from nested_reft.report.figures.off_policy import off_policy, off_policy_steps
from nested_reft.report.figures.speed import frontier, marker_sizes, pareto_front, speed_up
from nested_reft.report.figures.training import reward_curves
from nested_reft.report.layer_harm import layer_harm
from nested_reft.report.sources import Sources, read_sources
from tests import synthetic
from tests.conftest import ROOT

NEEDS_LATER_SOURCES = {"reward_cost", "layers", "token_weights"}


@pytest.fixture(scope="module")
def embedded() -> Sources:
    """Return the sources of the committed report of three seeds, which is of an earlier version."""
    return read_sources(ROOT / "docs/reports/embedded-full")


@pytest.fixture(scope="module")
def tables(embedded) -> dict[str, pd.DataFrame]:
    """Return the tables of the committed report of three seeds."""
    return make_tables(embedded)


@pytest.fixture(scope="module")
def studies(made_up, embedded, tmp_path_factory) -> dict[str, Sources]:
    """Return the sources of a complete study, of a study of one instance, of one with missing runs, and older ones."""
    whole = synthetic.study(models=1)
    one = synthetic.study(seeds=1, models=1, datasets=1).model_dump()
    one["grid"] |= {"skip_ratio": [0.1], "mitigation": ["base"]}
    one_study, folder = parse_settings(Study, one), tmp_path_factory.mktemp("studies")
    synthetic.write(one_study, folder / "one")
    shutil.copytree(made_up / "results", folder / "missing")
    for path, product in layout.products(whole):
        if product["product"] == "train" and (product["dataset"] == "algebra" or product["mitigation"] == "retrace"):
            shutil.rmtree(folder / "missing" / path)
    return {
        "whole": read_sources(made_up / "report"),
        "one instance": collect(one_study, folder / "one"),
        "missing": collect(whole, folder / "missing"),
        "older": embedded,
    }


def texts(figure: Figure) -> list[Text]:
    """Return the texts of a figure outside of its legends, without the labels of ticks."""
    found = list(figure.texts)
    for axis in filter(lambda axis: axis.get_visible(), figure.axes):
        titles = [axis.title, axis._left_title, axis._right_title]  # matplotlib has no public name for two of them
        found += [*titles, *axis.texts, *([axis.xaxis.label, axis.yaxis.label] if axis.axison else [])]
    return [text for text in found if text.get_text().strip()]


def check_legible(figure: Figure, name: str) -> None:
    """Check that no text is cut off at the edge or too small, and that the legend covers no other text."""
    figure.draw_without_rendering()
    box, legends = figure.bbox.padded(2), [legend.get_window_extent() for legend in figure.legends]
    for text in texts(figure):
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1, (name, text.get_text())
        assert box.y0 <= extent.y0 and extent.y1 <= box.y1, (name, text.get_text())
        assert text.get_fontsize() >= style.SMALL, (name, text.get_text())
        assert not any(legend.overlaps(extent) for legend in legends), (name, text.get_text())
    for legend in legends:
        assert box.x0 <= legend.x0 and legend.x1 <= box.x1, name
    assert figure.get_figwidth() <= style.WIDTH


@pytest.mark.parametrize("study", ["whole", "one instance", "missing", "older"])
def test_all_figures_are_drawn_and_can_be_read(studies, study, tables):
    sources, left_out = studies[study], set()
    tables = tables if study == "older" else make_tables(sources)
    for name, draw in figures_of_study(sources.config).items():
        figure = draw(sources, tables)
        if isinstance(figure, str):
            left_out.add(name)
            assert figure.endswith(".")
            continue
        check_legible(figure, name)
        style.plt.close(figure)
    assert left_out == (NEEDS_LATER_SOURCES if study == "older" else set())


def test_the_rules_and_the_page_know_the_figures_that_are_drawn():
    assert list(FIGURES) == list(layout.FIGURES)
    shown = {name for _, name, _ in contents(["one"])}
    assert shown == {*FIGURES, "figure_one", *layout.TABLES}


def test_the_same_table_gives_the_same_figure_files(embedded, tmp_path):
    for name in ("one", "two"):
        style.save(reward_curves(embedded, {}), tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_a_note_is_written_above_the_panels(embedded, tmp_path):
    figure = reward_curves(embedded, {})
    height = figure.get_figheight()
    style.save(figure, tmp_path / "reward", "Read with care.")
    assert "Read with care." in (tmp_path / "reward.svg").read_text()
    assert figure.get_figheight() > height  # the panels keep their size


def test_each_verdict_has_a_marker_a_color_and_an_entry_of_the_legend(studies):
    """The markers differ, so that the verdicts are distinct in gray."""
    sources, verdicts = studies["whole"], ["better", "worse", "equivalent", "inconclusive"]
    deltas = make_tables(sources)["deltas"]
    accuracy = deltas.query("metric == 'accuracy'").index
    deltas.loc[accuracy, "verdict"] = "inconclusive"
    deltas.loc[accuracy[:4], "verdict"] = verdicts
    for narrow in (False, True):
        figure = forest(sources, {"deltas": deltas}, narrow=narrow)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [*verdicts, "change of less than 1 point"]
        markers = [line.get_marker() for axis in figure.axes for line in axis.lines if line.get_marker() != "None"]
        assert {marker: markers.count(marker) for marker in set(markers)} == {"^": 1, "v": 1, "D": 1, "o": 24}
        check_legible(figure, "forest")


@pytest.mark.parametrize(
    ("verdicts", "said", "lines"),
    [
        (["better", "worse", "equivalent"], "Framed: better or worse (2 of 27). Dotted: equivalent (1 of 27).", 3),
        (["equivalent"], "Dotted: equivalent (1 of 27).", 1),
        ([], "All 27 are inconclusive.", 0),
    ],
)
def test_the_heat_map_frames_what_is_decided(studies, verdicts, said, lines):
    sources = studies["whole"]
    deltas = make_tables(sources)["deltas"]
    accuracy = deltas.query("metric == 'accuracy'").index
    deltas.loc[accuracy, "verdict"] = "inconclusive"
    deltas.loc[accuracy[: len(verdicts)], "verdict"] = verdicts
    (axis,) = heat_map(sources, {"deltas": deltas}).axes
    assert axis.get_title().endswith(said)
    frames = [patch.get_linestyle() for patch in axis.patches]
    assert len(frames) == lines and frames.count(":") == verdicts.count("equivalent")


@pytest.mark.parametrize(("deltas", "said"), [(0, "Nothing can be compared yet."), (1, "It is inconclusive.")])
def test_the_heat_map_of_one_delta_is_pale_where_it_is_noise(studies, deltas, said):
    table = make_tables(studies["one instance"])["deltas"].query("metric == 'accuracy'")[:1].copy()
    table.loc[:, ["absolute_delta", "ci_low", "ci_high"]] = (-0.02, -0.08, 0.04) if deltas else np.nan
    table["verdict"] = "inconclusive" if deltas else "missing"
    (axis,) = heat_map(studies["one instance"], {"deltas": table}).axes
    assert axis.get_title().endswith(said)
    assert axis.images[0].get_clim() == pytest.approx((-6, 6) if deltas else (-1, 1))


def test_the_lowest_panel_of_each_column_names_its_axis():
    figure, axes = panels(2, 3, 4, sharex=True)
    axes[1, 1].set_visible(False)
    mark_missing(axes[1, 2])
    name_axes(figure, "skip ratio")
    figure.canvas.draw()
    named = [[bool(axis.get_xlabel() and axis.get_xticklabels()[0].get_visible()) for axis in row] for row in axes]
    assert named == [[False, True, True], [True, False, False]]


def test_the_markers_of_a_single_skip_ratio_are_of_middle_size():
    assert marker_sizes(pd.DataFrame({"skip_ratio": [0.0, 0.15]})) == {0.15: 7.0}
    assert marker_sizes(pd.DataFrame({"skip_ratio": [0.0, 0.05, 0.15]})) == {0.05: 3.5, 0.15: 10.5}


def test_all_panels_of_the_forest_have_the_same_rows_and_its_legend_names_what_is_drawn(embedded, tables):
    figure = forest(embedded, tables)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["inconclusive", "change of less than 1 point"]
    first = figure.axes[0]
    names = [label.get_text() for label in first.get_yticklabels()]
    deltas = tables["deltas"].query("metric == 'accuracy' and dataset == 'algebra' and model == 'wide-20'")
    drawn = {line.get_ydata()[0]: line.get_xdata()[1] for line in figure.axes[5].lines if line.get_marker() == "o"}
    assert len(names) == len(drawn) == 9 and len(first.get_xticks()) >= 4
    for row in deltas.to_dict("records"):
        place = names.index(f"{100 * row['skip_ratio']:g}% {row['mitigation']}")
        assert drawn[place] == pytest.approx(100 * row["absolute_delta"])


def test_a_forest_marks_the_deltas_of_fewer_seeds_and_has_one_column_on_a_phone(studies):
    sources, num_seeds, fewer = studies["whole"], 2, 3
    deltas = make_tables(sources)["deltas"]
    deltas.loc[deltas.query("metric == 'accuracy'").index[:fewer], "seeds"] = 1
    for narrow in (False, True):
        figure = forest(sources, {"deltas": deltas}, narrow=narrow)
        dotted = [line for axis in figure.axes for line in axis.lines if line.get_linestyle() == "--"]
        (legend,) = figure.legends
        texts = {text.get_text() for text in legend.get_texts()}
        assert len(dotted) == fewer and f"fewer than {num_seeds} seeds: runs are missing" in texts
    assert len({axis.get_position().x0 for axis in figure.axes if axis.get_visible()}) == 1
    check_legible(figure, "forest_narrow")
    assert "trained on" in figure.axes[0].get_title()


def test_the_pareto_front_holds_what_no_point_beats_in_both():
    front = pareto_front([(0.0, 0.0), (1.0, -1.0), (0.5, -2.0), (-1.0, 1.0), (-1.0, 0.5)])
    assert front == [(-1.0, 1.0), (0.0, 0.0), (1.0, -1.0)]


def test_no_kl_is_drawn_below_zero(embedded):
    """The k1 estimate, which alone an older report has, is negative for one seed."""
    lowered = embedded.steps.assign(**{"sampling/kl": embedded.steps["sampling/kl"] - 0.05})
    figure = off_policy(embedded._replace(steps=lowered), {})
    over_steps = off_policy_steps(embedded._replace(steps=lowered), {}).axes[::2]
    assert min(float(np.min(line.get_ydata())) for axis in over_steps for line in axis.lines) >= 0
    kl_panels = figure.axes[::3]
    segments = [path for axis in kl_panels for bars in axis.collections for path in bars.get_segments()]
    assert segments and min(float(segment[:, 1].min()) for segment in segments) >= 0
    assert min(axis.get_ylim()[0] for axis in kl_panels) >= 0


def test_the_harm_of_a_layer_is_the_reward_of_the_steps_that_skipped_it():
    steps = pd.DataFrame(
        {
            "model": "small",
            "dataset": "mixed",
            "skip_ratio": [0.0, 0.1, 0.1, 0.1, 0.1],
            "reward": [0.8, 0.1, 0.3, 0.7, np.nan],
            "skipped_layers": [None, "4", "4 7", "7", "7"],
        }
    )
    harm = layer_harm(steps).set_index("layer")
    assert harm["reward"].to_dict() == pytest.approx({4: 0.2, 7: 0.5})
    assert harm["steps"].to_dict() == {4: 2, 7: 2}
    assert harm["baseline"].tolist() == [0.8, 0.8] and harm["all_nested"].iloc[0] == pytest.approx(1.1 / 3)


def test_the_frontier_has_intervals_on_both_axes(made_up):
    sources = read_sources(made_up / "report")
    tables = make_tables(sources)
    axis = frontier(sources, tables).axes[0]
    bars = [
        segment for lines in axis.collections if isinstance(lines, LineCollection) for segment in lines.get_segments()
    ]
    flat = [segment for segment in bars if segment[0][1] == segment[1][1]]
    upright = [segment for segment in bars if segment[0][0] == segment[1][0]]
    assert len(flat) == len(upright) == 9
    assert all(segment[1][0] > segment[0][0] for segment in flat)
    widths = sorted({round(segment[1][0] - segment[0][0], 6) for segment in flat})
    reach = tables["speed"].dropna()["ci_high"] - tables["speed"].dropna()["ci_low"]
    assert widths == pytest.approx(sorted(reach), abs=1e-5)


def test_the_figure_of_the_measured_speed_states_the_slope_of_each_model(made_up):
    sources = read_sources(made_up / "report")
    tables = make_tables(sources)
    svg = style.as_svg(speed_up(sources, tables))
    slope = tables["speed_slope"].iloc[0]
    assert f"slope {slope['slope']:.2f} [{slope['ci_low']:.2f}, {slope['ci_high']:.2f}]" in svg
    assert "14.3%" in svg and "bound with the output projection" in svg
