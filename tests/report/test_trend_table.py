"""The trend of made-up studies: what was put in is said in words, and nothing else."""

import pandas as pd
import pytest

from nested_reft.report import build
from nested_reft.report.captions import render, report_facts
from nested_reft.report.collect import collect
from nested_reft.report.sources import Sources
from nested_reft.report.statistics import holm
from nested_reft.report.trend import cell_slope, pooled_trend
from nested_reft.report.trend_table import TREND, scores_of_cells, trend_table
from tests import synthetic


def with_margin(sources: Sources, margin: float) -> Sources:
    """Return the sources of the same study with another margin."""
    return sources._replace(config=sources.config | {"analysis": {"confidence": 0.95, "margin": margin}})


def findings(sources: Sources) -> str:
    """Return the findings in one line."""
    return " ".join(render(report_facts(sources, build.make_tables(sources)))["findings"].split())


@pytest.fixture(scope="module")
def null(tmp_path_factory) -> Sources:
    """Return a study in which skipping layers changes nothing."""
    study, folder = synthetic.study(models=1), tmp_path_factory.mktemp("null")
    synthetic.write(study, folder, effect=0.0, steps=2)
    return collect(study, folder)


@pytest.fixture(scope="module")
def losing(tmp_path_factory) -> Sources:
    """Return a study that loses 2 points at the largest skip ratio; half of that at half of it."""
    folder = tmp_path_factory.mktemp("losing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SIZES", {name: 4 * size for name, size in synthetic.SIZES.items()})
        study = synthetic.study(models=1)
        synthetic.write(study, folder, effect=0.0, slope=-0.45, steps=2)
        return collect(study, folder)


def test_a_study_without_an_effect_says_that_it_has_too_little_data_or_that_the_change_is_small(null):
    assert "1. **Too little data to say whether skipping layers costs accuracy.**" in findings(null)
    assert "changes the accuracy by less than 3 points at 15% skipped.**" in findings(with_margin(null, 3.0))


def test_a_study_that_loses_two_points_says_so(losing):
    row = trend_table(losing).iloc[0]
    assert row["delta_ci_low"] < -0.02 < row["delta_ci_high"] < 0 and row["verdict"] == "worse"
    lost = f"{-100 * row['delta']:.2g} points"
    assert f"1. **Skipping layers costs accuracy: {lost} at 15% skipped.**" in findings(losing)
    # a loss that does not matter is called equivalent, although it is not zero
    assert trend_table(with_margin(losing, 6.0)).iloc[0]["verdict"] == "equivalent"


def test_the_table_has_a_row_for_the_study_and_one_per_mitigation(losing):
    table = trend_table(losing)
    assert list(table.columns) == TREND
    assert list(table["part"]) == ["all runs", "mitigation base", "mitigation practical", "mitigation retrace"]
    assert set(table["cells"]) == {3} and set(table["seeds"]) == {2} and set(table["covers"]) == {"seeds, problems"}
    assert table["p_holm"].tolist() == pytest.approx([table["p"][0], *holm(table["p"][1:])])
    assert table["delta"].tolist() == pytest.approx(list(table["slope"] / 0.1 * 4 / 28))  # 15 % of 28 layers are 4


def test_the_slope_of_a_mitigation_is_that_of_its_instances_and_the_baselines(losing):
    slopes = []
    for cell in scores_of_cells(losing):
        kept = [0, 3, 6, 9]  # the baseline, and `retrace` at each ratio
        slopes.append(cell_slope(cell.scores[kept], cell.shares[kept], cell.benchmarks))
    expected = pooled_trend(slopes, cell.benchmarks, 0.95)
    row = trend_table(losing).iloc[-1]
    assert [row["slope"], row["ci_low"], row["p"]] == pytest.approx(
        [0.1 * expected.slope, 0.1 * expected.ci_low, expected.p]
    )


def test_each_model_of_several_has_a_row(losing):
    """The second model is a copy of the first with another number of layers."""
    scores, config = losing.problem_scores, losing.config
    both = pd.concat([scores, scores.assign(model="other")])
    config = config | {"grid": config["grid"] | {"model": ["small-28", "other"]}}
    models = losing.provenance["models"] | {"other": {"num_layers": 20, "width": 64}}
    provenance = losing.provenance | {"models": models}
    table = trend_table(losing._replace(problem_scores=both, config=config, provenance=provenance)).set_index("part")
    assert table.loc["model small-28", "slope"] == pytest.approx(trend_table(losing)["slope"][0])
    assert table.loc["model other", "delta"] / table.loc["model other", "slope"] == pytest.approx(0.15 / 0.1)
    assert table.loc["all runs", "cells"] == 6


def test_a_study_without_a_finished_pair_has_no_trend(null):
    only_baselines = null.problem_scores.query("skip_ratio == 0")
    table = trend_table(null._replace(problem_scores=only_baselines))
    assert set(table["verdict"]) == {"missing"} and set(table["cells"]) == {0}
    nothing = trend_table(null._replace(problem_scores=null.problem_scores.head(0)))
    assert set(nothing["verdict"]) == {"missing"} and isinstance(nothing, pd.DataFrame)
