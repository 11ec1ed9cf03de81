import numpy as np
import pandas as pd
import pytest

from nested_reft.report import build
from nested_reft.report.captions import report_facts
from nested_reft.report.details import SPEED
from nested_reft.report.sources import read_sources
from nested_reft.report.speed import is_measured, relative_slope, speed_slope_table, speed_table


def measured(seconds: list[dict[int, float]]) -> pd.DataFrame:
    """Return a measurement of a model of 28 layers, of 1000 parameters each and 4000 in the output projection."""
    facts = ["tiny", "engine", "CPU", 1, 28, 1000, 4000, 100, 500]
    rows = [[*facts, index, k, value] for index, times in enumerate(seconds) for k, value in times.items()]
    return pd.DataFrame(rows, columns=SPEED)


def test_speed_ups_are_ratios_within_rounds():
    drifting = [{0: 1.0 * drift, 4: 0.8 * drift} for drift in (1.0, 3.0, 2.0)]
    baseline, skipping = speed_table(measured(drifting), 0.95).to_dict("records")
    assert baseline["tokens_per_second"] == 50.0 and np.isnan(baseline["speed_up"])
    assert skipping["speed_up"] == pytest.approx(1.25)
    assert (skipping["ci_low"], skipping["ci_high"]) == pytest.approx((1.25, 1.25))
    assert skipping["bound"] == pytest.approx(28 / 24)
    assert skipping["bound_with_lm_head"] == pytest.approx(32_000 / 28_000)
    assert skipping["share"] == pytest.approx(4 / 28)


def test_a_linear_speed_has_its_slope_in_every_round():
    shares = np.array([0, 1, 3, 4]) / 28
    speeds = np.array([[100.0], [70.0]]) * (1 + 0.8 * shares)
    assert relative_slope(speeds, shares) == pytest.approx([0.8, 0.8])


def test_the_slope_is_beside_that_of_the_bounds():
    rounds = [{k: drift / (1 + 0.5 * k / 28) for k in (0, 1, 3, 4)} for drift in (1.0, 2.0, 1.5)]
    row = speed_slope_table(measured(rounds), 0.95).iloc[0]
    assert row["slope"] == pytest.approx(0.5)
    assert row["rounds"] == 3
    assert 1 < row["slope_of_bound_with_lm_head"] < row["slope_of_bound"]


def test_noise_widens_the_interval_of_the_slope():
    noise = np.random.default_rng(0).normal(size=(12, 4))
    rounds = [{k: 1 + 0.05 * each for k, each in zip((0, 1, 3, 4), row, strict=True)} for row in noise]
    row = speed_slope_table(measured(rounds), 0.95).iloc[0]
    assert row["ci_low"] < 0 < row["ci_high"]


def test_a_report_without_a_measurement_has_empty_tables():
    nothing = pd.DataFrame()
    assert speed_table(nothing, 0.95).empty and speed_slope_table(nothing, 0.95).empty


def test_the_report_states_the_measured_speed(made_up):
    sources = read_sources(made_up / "report")
    assert is_measured(sources)
    tables = build.make_tables(sources)
    slope = tables["speed_slope"].iloc[0]
    assert slope["slope"] == pytest.approx(0.9, abs=0.05) and slope["ci_low"] > 0.8
    efficiency = tables["efficiency"]
    assert set(efficiency["speed_source"]) == {"measured alone"}
    at_4 = efficiency[efficiency["num_skipped"] == 4]
    assert at_4["sampling_speed_up"].nunique() == 1
    assert at_4["sampling_speed_up_in_training"].nunique() > 1
    text = (made_up / "report/findings.rst").read_text()
    assert "Measured on a machine that did nothing else, over 8 rounds." in text
    assert f"The speed grows by {slope['slope']:.2f}% [" in text


def test_a_model_or_a_ratio_that_was_not_measured_leaves_the_report_to_the_speeds_of_training(made_up):
    sources = read_sources(made_up / "report")
    sources.config["grid"]["model"].append("another")
    assert not is_measured(sources)
    sources.config["grid"]["model"].pop()
    sources.config["grid"]["skip_ratio"].append(0.2)  # a ratio that was added after the measurement
    assert not is_measured(sources)
    assert set(build.make_tables(sources)["efficiency"]["speed_source"]) == {"seen during training"}
    sources.config["grid"]["skip_ratio"].pop()
    assert is_measured(sources)
    without = sources._replace(details=sources.details._replace(speed_rounds=pd.DataFrame()))
    tables = build.make_tables(without)
    assert set(tables["efficiency"]["speed_source"]) == {"seen during training"}
    assert tables["efficiency"]["sampling_speed_up"].equals(tables["efficiency"]["sampling_speed_up_in_training"])
    assert report_facts(without, tables)["measured"] == []
