"""A study that is looked at while it runs: its verdicts wait, and its error does not grow with the looks."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nested_reft.report.build import make_tables
from nested_reft.report.captions import report_facts, text
from nested_reft.report.deltas import verdict
from nested_reft.report.figures.accuracy import forest, heat_map
from nested_reft.report.interim import run_counts, without_verdicts
from nested_reft.report.sources import read_sources
from nested_reft.report.style import as_svg


@pytest.fixture(scope="module")
def unfinished(made_up):
    """Return the sources of a study of 60 runs, of which one is missing, and an instance without any run."""
    sources = read_sources(made_up / "report")
    gone = (
        "mitigation == 'retrace' and dataset == 'algebra' and (skip_ratio == 0.1 or skip_ratio == 0.15 and seed == 1)"
    )
    runs = {name: getattr(sources, name) for name in ("results", "problem_scores", "steps")}
    return sources._replace(**{name: table.drop(table.query(gone).index) for name, table in runs.items()})


def test_no_table_of_an_unfinished_study_has_a_verdict_or_a_p(unfinished):
    assert run_counts(unfinished) == (57, 60)
    tables = make_tables(unfinished)
    deltas = tables["deltas"]
    assert set(deltas["verdict"]) == {"waiting", "missing"}
    assert deltas["absolute_delta"].notna().sum() == (deltas["verdict"] == "waiting").sum()
    accuracy = deltas[deltas["metric"] == "accuracy"].dropna(subset="absolute_delta")
    assert accuracy[["ci_low", "ci_high"]].notna().all(axis=None)
    assert set(tables["trend"]["verdict"]) == {"waiting"} and tables["trend"]["ci_low"].notna().all()
    for name in ("deltas", "trend", "strategy_counts"):
        assert tables[name].filter(regex="^p$|^p_|_p$").isna().all(axis=None), name
    assert set(tables["table2"]["best_verdict"].dropna()) == {"waiting"}
    assert set(tables["efficiency"]["verdict"]) == {"waiting", "missing"}


def test_findings_of_an_unfinished_study_begin_with_interim(unfinished):
    tables = make_tables(unfinished)
    findings = text("findings", report_facts(unfinished, tables))
    assert findings.splitlines()[3].startswith("1. **Interim: 57 of 60 runs are finished")
    assert "Single comparisons: all 26 waiting" in findings
    for word in ("worse than the baseline:", "so a loss of at most", "is decided", "A true change has to be"):
        assert word not in findings
    assert "waiting" in as_svg(forest(unfinished, tables))
    assert "Interim: the verdicts wait for the last run." in as_svg(heat_map(unfinished, tables))


def test_a_finished_study_is_judged(made_up):
    sources = read_sources(made_up / "report")
    assert run_counts(sources) == (60, 60)
    tables = make_tables(sources)
    assert "waiting" not in set(tables["deltas"]["verdict"]) and tables["deltas"]["p"].notna().any()


def p_of_looks(seeds: list[int], repeats: int = 8000) -> np.ndarray:
    """Return p (repeats, looks) of a delta that is zero, after these numbers of seeds; its noise is known."""
    noise = np.random.default_rng(0).normal(size=(repeats, max(seeds)))
    means = noise.cumsum(axis=1)[:, np.array(seeds) - 1] / np.array(seeds)
    return 2 * stats.norm.sf(np.abs(means) * np.sqrt(seeds))


def decided(p: np.ndarray, confidence: float, finished: bool) -> np.ndarray:
    """Return for each study (repeats,) whether its table says better or worse at one look."""
    table = pd.DataFrame({"p": p, "verdict": [verdict(1.0, value, np.nan, confidence) for value in p]})
    return (table if finished else without_verdicts(table))["verdict"].isin(["better", "worse"]).to_numpy()


def test_a_hundred_looks_make_no_more_errors_than_one():
    """The docs state the 38 % of studies that find a difference by chance if they are judged at every look."""
    looks = p_of_looks(list(range(1, 101))).T
    waited = [decided(p, 0.95, finished=number == 100) for number, p in enumerate(looks, 1)]
    assert 0.04 < np.any(waited, axis=0).mean() < 0.055
    assert np.any(looks < 0.05, axis=0).mean() == pytest.approx(0.38, abs=0.015)


@pytest.mark.parametrize(("confidence", "error"), [(0.95, 0.083), (0.975, 0.045)])
def test_an_extended_study_is_looked_at_twice(confidence, error):
    """3 seeds, and then 3 more: the docs state both errors."""
    looks = [decided(p, confidence, finished=True) for p in p_of_looks([3, 6]).T]
    assert np.any(looks, axis=0).mean() == pytest.approx(error, abs=0.007)
