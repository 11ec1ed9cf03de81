"""Problems that come in clusters: hand-worked sums, another library's numbers, and how often intervals are right."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import statsmodels.api as sm

from nested_reft.embedded.problems import generate
from nested_reft.report.build import make_tables
from nested_reft.report.captions import report_facts, text
from nested_reft.report.clusters import cluster_codes, variance_of_mean
from nested_reft.report.collect import all_problem_scores
from nested_reft.report.deltas import delta_table
from nested_reft.report.sources import read_sources, write_sources
from nested_reft.report.statistics import accuracy_deltas, accuracy_interval, problem_interval
from nested_reft.report.trend import cell_slope, pooled_trend
from nested_reft.report.trend_table import scores_of_cells
from nested_reft.report.variance import (
    problem_variance,
    residual_variance,
    satterthwaite,
    variance_between_problems,
)
from tests.conftest import ROOT
from tests.report.test_statistics import LEVEL, Simulation, holds


def test_a_variance_by_cluster_sums_by_hand():
    """Mean 0.5; the sums around it are 0.5 + 0.5 = 1, -0.5 - 0.5 = -1 and 0; 3 / 2 * (1 + 1 + 0) / 6^2 = 1 / 12."""
    values, codes = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), np.array([7, 7, 3, 3, 5, 5])
    assert variance_of_mean(values, codes) == pytest.approx(1 / 12)
    found = variance_between_problems(values, np.repeat("a", 6), codes)
    assert (found.variances, found.freedoms) == (pytest.approx([1 / 12]), [2])
    # a second benchmark of one problem adds nothing, and halves the weight of the first
    more = variance_between_problems(np.append(values, 1.0), np.array([*"aaaaaa", "b"]), np.append(codes, 9))
    assert more.variances == pytest.approx([1 / 48, 0]) and more.freedoms.tolist() == [2, 1]
    assert satterthwaite(1 / 48, more) == pytest.approx(2)


def test_the_variance_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    values, codes = rng.normal(size=40), rng.integers(0, 9, size=40)
    fit = sm.OLS(values, np.ones(40)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    assert variance_of_mean(values, codes) == pytest.approx(fit.cov_params()[0, 0])


@pytest.mark.parametrize("seeds", [1, 3])
def test_clusters_of_one_problem_are_problems(seeds):
    rng = np.random.default_rng(seeds)
    simulation = Simulation((30, 50), instances=2, seeds=seeds, seed_sd=0.2)
    scores, alone = simulation.draw(rng), np.arange(80)
    differences = scores[1] - scores[0]
    variances, freedoms = problem_variance(differences, simulation.benchmarks, alone)
    assert problem_variance(differences, simulation.benchmarks).variances == pytest.approx(variances)
    by_hand = [own.mean(axis=0).var(ddof=1) / own.shape[1] / 4 for own in (differences[:, :30], differences[:, 30:])]
    if seeds > 1:
        by_hand += [
            -residual_variance(own) / seeds / own.shape[1] / 4 for own in (differences[:, :30], differences[:, 30:])
        ]
    assert variances == pytest.approx(by_hand)
    assert freedoms.tolist() == [29, 49, 58, 98][: 2 * min(seeds, 2)]


def test_a_single_cluster_counts_as_its_problems():
    values = np.random.default_rng(0).normal(size=12)
    (variance,), (freedom,) = variance_between_problems(values, np.repeat("a", 12), np.zeros(12, int))
    assert (variance, freedom) == (pytest.approx(values.var(ddof=1) / 12), 11)


def test_a_problem_without_a_cluster_is_one_of_its_own():
    rows = [("a", 0, "x"), ("a", 1, "x"), ("a", 2, None), ("a", 3, None), ("b", 0, "x"), ("b", 1, "1")]
    problems = pd.DataFrame(rows, columns=["benchmark", "problem_id", "cluster"])
    assert cluster_codes(problems).tolist() == [0, 0, 1, 2, 3, 4]
    assert cluster_codes(problems.drop(columns="cluster")) is None
    assert cluster_codes(problems.assign(cluster=None)) is None
    assert cluster_codes(problems.assign(cluster=[*"uvwxyz"])) is None


def draw_clustered(rng, sizes, per_cluster, seeds, seed_sd=0.0, cluster_sd=0.7):
    """Return scores (4, seeds, n) of four models without a difference, the benchmarks (n,) and the clusters (n,).

    A model is better or worse at all problems of a cluster, in another way than the other models are.
    """
    simulation = Simulation(sizes, instances=3, seeds=seeds)
    clusters = np.arange(sum(sizes)) // per_cluster
    latent = np.repeat(simulation.means, sizes) + rng.normal(size=sum(sizes))
    latent = latent + cluster_sd * rng.normal(size=(4, 1, clusters.max() + 1))[:, :, clusters]
    latent = latent + seed_sd * rng.normal(size=(4, seeds, 1))
    return (latent + 0.5 * rng.normal(size=simulation.shape) > 0).astype(float), simulation.benchmarks, clusters


def coverage(sizes, per_cluster, seeds, seed_sd, repeats) -> tuple[float, float]:
    """Return how often the interval of a delta holds the truth, with clusters and without them."""
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(repeats):
        scores, benchmarks, clusters = draw_clustered(rng, sizes, per_cluster, seeds, seed_sd)
        for place, codes in enumerate((clusters, None)):
            delta = next(accuracy_deltas(scores, benchmarks, LEVEL, resamples=200, clusters=codes))
            held[place] += delta.ci_low <= 0 <= delta.ci_high
    return tuple(held / repeats)


def test_intervals_without_clusters_are_too_narrow():
    clustered, naive = coverage((100, 150), 10, 1, 0.0, repeats=400)
    assert 0.92 < clustered <= 0.98 and naive < 0.85


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.0), (3, 0.3)])
@pytest.mark.parametrize(("sizes", "per_cluster"), [((60, 60, 60), 15), ((100, 150), 10), ((300, 300), 5)])
def test_coverage_with_clusters(sizes, per_cluster, seeds, seed_sd):
    clustered, naive = coverage(sizes, per_cluster, seeds, seed_sd, repeats=2000)
    assert holds(clustered)
    assert seed_sd > 0 or naive < clustered - 0.05  # the variation of seeds may be larger than that of clusters


def test_the_trend_of_clusters_has_a_wider_interval_and_is_wrong_as_seldom():
    rng, found, shares = np.random.default_rng(0), np.zeros(2), np.array([0.0, 0.1])
    for _ in range(400):
        scores, benchmarks, clusters = draw_clustered(rng, (100, 150), 10, 1)
        for place, codes in enumerate((clusters, None)):
            slope = cell_slope(scores[:2], shares, benchmarks)
            found[place] += pooled_trend([slope], benchmarks, LEVEL, codes).p < 0.05
    assert 0.02 < found[0] / 400 < 0.08 and found[1] / 400 > 0.2


def test_an_accuracy_counts_its_clusters():
    scores, clusters = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], 20), np.repeat(np.arange(6), 20)
    low, high = accuracy_interval(scores, 1, LEVEL)
    clustered_low, clustered_high = accuracy_interval(scores, 1, LEVEL, clusters)
    assert clustered_high - clustered_low > 3 * (high - low)
    assert accuracy_interval(np.ones(120), 1, LEVEL, clusters)[0] == accuracy_interval(np.ones(6), 1, LEVEL)[0]
    benchmarks = np.repeat("a", 120)
    own, of_clusters = (problem_interval(scores, benchmarks, LEVEL, clusters=codes) for codes in (None, clusters))
    assert of_clusters[0] < own[0] and of_clusters[1] > own[1]


def test_a_report_reads_the_clusters_of_its_problems(made_up, tmp_path):
    sources = read_sources(made_up / "report")
    scores = sources.problem_scores
    clusters = (scores["problem_id"] % 5).map("template {}".format)
    write_sources(sources._replace(problem_scores=scores.assign(cluster=clusters)), tmp_path)
    clustered = read_sources(tmp_path)
    assert clustered.problem_scores["cluster"].tolist() == clusters.tolist()
    tables = [make_tables(of) for of in (sources, clustered)]
    for name in ("deltas", "trend"):
        widths = [table[name]["ci_high"] - table[name]["ci_low"] for table in tables]
        assert (widths[0] != widths[1]).any(), name
    speeds = [table["deltas"].query("metric != 'accuracy'").reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(*speeds)
    assert tables[0]["mcnemar"].equals(tables[1]["mcnemar"])
    findings = text("findings", report_facts(clustered, tables[1]))
    assert "one-step (60 in 5 clusters), multi-step (40 in 5 clusters)" in findings


def test_records_with_and_without_clusters_are_collected_together():
    rows = {"benchmark": ["a", "a", "a", "a"], "problem_id": [0, 0, 1, 1], "correct": [True, False, True, True]}
    tables = [pa.table(rows | {"cluster": ["x", "x", None, None]}), pa.table(rows)]
    scores = all_problem_scores(tables)
    assert scores["num_correct"].tolist() == [1, 2, 1, 2] and scores["number"].tolist() == [0, 0, 1, 1]
    assert scores["cluster"][0] == "x" and scores["cluster"][1:].isna().all()
    assert "cluster" not in all_problem_scores([tables[1]])


def embedded_clusters(sources, grouping) -> pd.Series:
    """Return the cluster of each row of the problem scores of a study of the embedded benchmarks."""
    scores = sources.problem_scores
    sizes = scores.groupby("benchmark", observed=True)["problem_id"].max() + 1
    found = {
        (kind, number): grouping(problem)
        for kind, size in sizes.items()
        for number, problem in enumerate(generate(kind, "benchmark", size, seed=0))
    }
    return pd.Series([found[key] for key in zip(scores["benchmark"], scores["problem_id"], strict=True)])


def template(problem) -> str:
    """Return the words of a problem without names, things and numbers: what it shares with its template."""
    if problem.kind == "algebra":
        return problem.problem.split()[0] + ("+" in problem.cluster) * "+"
    return "".join(sign for sign in problem.cluster if sign in "+-*/")


@pytest.mark.parametrize(("study", "worse"), [("embedded", 2), ("embedded-full", 0)])
def test_the_verdicts_of_the_embedded_studies_are_the_same_with_their_clusters(study, worse):
    """The docs state both widths: of calculations, which are the clusters, and of templates, which are not."""
    sources = read_sources(ROOT / "docs/reports" / study)
    scores, found = sources.problem_scores, []
    for grouping in (lambda problem: None, lambda problem: problem.cluster, template):
        given = scores.assign(cluster=embedded_clusters(sources, grouping).to_numpy())
        found.append(delta_table(sources._replace(problem_scores=given)).query("metric == 'accuracy'"))
    assert (found[0]["verdict"] == found[1]["verdict"]).all() and (found[0]["verdict"] == "worse").sum() == worse
    widths = [(deltas["ci_high"] - deltas["ci_low"]).mean() for deltas in found]
    assert widths[1] / widths[0] == pytest.approx({"embedded": 1.015, "embedded-full": 1.0}[study], abs=0.002)
    assert widths[2] / widths[0] == pytest.approx({"embedded": 1.27, "embedded-full": 1.04}[study], abs=0.01)
    assert not (found[2]["verdict"] == "worse").any()


def test_answers_to_one_calculation_agree_and_those_of_one_template_do_not_change_together():
    """The docs state these numbers of the 14 pairs of one-step problems, and of all four to six templates."""
    sources = read_sources(ROOT / "docs/reports/embedded-full")
    found = [
        list(scores_of_cells(sources._replace(problem_scores=sources.problem_scores.assign(cluster=names.to_numpy()))))
        for names in (
            embedded_clusters(sources, lambda problem: problem.cluster),
            embedded_clusters(sources, template),
        )
    ]
    benchmarks = found[0][0].benchmarks
    scores = np.stack([cell.scores for cell in found[0]])  # (cells, instances, seeds, n)
    by_seed = (scores[:, 1:] - scores[:, :1]).reshape(-1, scores.shape[-1])
    for name, correlation in {"one-step": 0.004, "multi-step": 0.005, "algebra": 0.000}.items():
        chosen = benchmarks == name
        differences = (scores[:, 1:] - scores[:, :1]).mean(axis=2).reshape(-1, scores.shape[-1])[:, chosen]
        assert intra_cluster_correlation(differences, found[1][0].clusters[chosen]) == pytest.approx(
            correlation, abs=0.0006
        )
    chosen = benchmarks == "one-step"
    codes = found[0][0].clusters[chosen]
    first, second = np.nonzero(np.triu(codes[:, None] == codes, 1))
    assert len(first) == 14
    answers = scores.reshape(-1, scores.shape[-1])[:, chosen]
    assert (answers[:, first] == answers[:, second]).mean() == pytest.approx(0.995, abs=0.001)
    rates = answers[:, np.union1d(first, second)].mean(axis=0)
    by_chance = (np.outer(rates, rates) + np.outer(1 - rates, 1 - rates)).mean()
    assert by_chance == pytest.approx(0.90, abs=0.005)
    changed = by_seed[:, chosen] != 0
    both = (changed[:, first] & changed[:, second]).sum()
    assert 2 * both / (changed[:, first].sum() + changed[:, second].sum()) == pytest.approx(0.85, abs=0.005)
    assert changed.mean() == pytest.approx(0.032, abs=0.0005)


def intra_cluster_correlation(values: np.ndarray, codes: np.ndarray) -> float:
    """Return the correlation of values (m, n) of two problems of a cluster, from the analysis of variance."""
    sizes = np.bincount(np.unique(codes, return_inverse=True)[1])
    number, n = len(sizes), len(codes)
    mean = values.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(np.unique(codes, return_inverse=True)[1], weights=row) for row in values])
    between = (sizes * (sums / sizes - mean) ** 2).sum()
    within = ((values - mean) ** 2).sum() - between
    between, within = between / (number - 1), within / (n - number)
    size = (n - (sizes**2).sum() / n) / (number - 1)
    return (between - within) / (between + (size - 1) * within)
