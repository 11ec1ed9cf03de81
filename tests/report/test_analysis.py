"""Deltas and tables, against hand-worked cases and the paper's own numbers; reports that rebuild themselves."""

import resource
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from nested_reft.config import layout
from nested_reft.errors import UserError
from nested_reft.records.files import read_json
from nested_reft.report import build, captions
from nested_reft.report import figures as plots
from nested_reft.report.deltas import delta_table, mcnemar_table, overall
from nested_reft.report.paper import PAPER_TABLE_2, config_table, paper_table2
from nested_reft.report.sources import collect, read_sources
from nested_reft.report.statistics import accuracy_deltas, holm, mcnemar_test
from nested_reft.report.tables import round_toward_zero, strategy_counts, table1, table2
from tests import synthetic
from tests.conftest import ROOT, run


def test_table_2_of_the_paper():
    table = paper_table2().set_index(["model", "dataset"])
    means = table.xs("magnitude of the mean", level="dataset")
    assert means[["best_delta", "worst_delta"]].values.tolist() == [[0.016, 0.009], [0.009, 0.036]]
    assert table.loc[("Qwen2.5-Math-7B-Instruct", "Math12k"), "best_delta"] == -0.003
    assert table.loc[("Qwen2.5-Math-7B-Instruct", "SVAMP"), "worst_delta"] == -0.070
    assert [len(datasets) for datasets in PAPER_TABLE_2.values()] == [3, 3]


def test_table_2_names_its_instances_and_leaves_out_a_mean_that_a_missing_dataset_would_bend():
    cells = pd.DataFrame(
        {
            "model": "m",
            "dataset": dataset,
            "skip_ratio": 0.1,
            "mitigation": mitigation,
            "absolute_delta": delta,
            "ci_low": delta - 0.01,
            "ci_high": delta + 0.01,
            "verdict": "resolved",
            "standard_error": 0.01,
        }
        for dataset, deltas in {"a": (0.02, -0.03), "b": (np.nan, np.nan)}.items()
        for mitigation, delta in zip(("base", "retrace"), deltas, strict=True)
    )
    rows = table2(cells).set_index("dataset")
    assert rows.loc["a", ["best_instance", "best_delta", "worst_instance", "worst_ci_low"]].tolist() == [
        "10% base",
        0.02,
        "10% retrace",
        -0.04,
    ]
    assert rows.loc["b", "best_verdict"] == "missing"
    assert np.isnan(rows.loc["magnitude of the mean", "best_delta"])
    assert 0 < rows.loc["a", "best_by_chance"] < 0.01


def test_magnitudes_are_cut_off_as_the_paper_does():
    assert [round_toward_zero(value) for value in (0.00967, -0.00967, 0.009, -0.0363, 0.0)] == [
        0.009,
        0.009,
        0.009,
        0.036,
        0.0,
    ]


def test_table_1():
    table = table1({"tiny-28": {"num_layers": 28, "width": 64}}, [0.05, 0.1, 0.15])
    assert table.values.tolist() == [["tiny-28", 28, 64, 1, 3, 4]]
    assert list(table.columns) == ["model", "N", "W", "5%", "10%", "15%"]


def test_strategy_counts():
    cells = pd.DataFrame(
        [
            {"model": model, "dataset": "d", "mitigation": mitigation, "absolute_delta": delta}
            for model, values in {"a": (1, 2, 3), "b": (3, 2, 1), "c": (3, 1, 2)}.items()
            for mitigation, delta in zip(("base", "practical", "retrace"), values, strict=True)
        ]
    )
    counts = strategy_counts(cells).set_index("mitigation")
    held = counts[["best", "worst", "neutral"]]
    assert held.loc["base"].tolist() == [2, 1, 0]
    assert held.loc["practical"].tolist() == [0, 1, 2]
    assert held.loc["retrace"].tolist() == [1, 1, 1]
    assert counts["best_by_chance"].tolist() == pytest.approx([1, 1, 1])
    assert counts["neutral_by_chance"].tolist() == pytest.approx([1, 1, 1])
    assert counts.loc["base", "best_p"] == pytest.approx(stats.binomtest(2, 3, 1 / 3).pvalue)
    tied = cells[cells["model"] == "a"].assign(**{"absolute_delta": [2, 2, 1]})
    assert strategy_counts(tied).set_index("mitigation")["best"].tolist() == [1, 1, 0]


def test_chance_of_being_neither_best_nor_worst_by_enumeration():
    """Of nine instances, three of each mitigation, the best is another's in 6 of 9 and the worst then in 5 of 8."""
    rows = [{"model": "m", "dataset": "d", "mitigation": "abc"[i % 3], "absolute_delta": float(i)} for i in range(9)]
    assert strategy_counts(pd.DataFrame(rows))["neutral_by_chance"].tolist() == pytest.approx([6 / 9 * 5 / 8] * 3)


def test_overall_is_the_unweighted_mean_over_benchmarks():
    run = {"product": "train", "model": "m", "dataset": "d", "skip_ratio": 0.1, "mitigation": "base", "seed": 0}
    table = pd.DataFrame(
        [run | {"benchmark": b, "accuracy": a, "n": n} for b, a, n in (("x", 0.5, 100), ("y", 0.9, 10))]
    )
    assert overall(table)["accuracy"].tolist() == pytest.approx([0.7])


# ---- a whole made-up study ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Return the folder of a made-up study of 60 runs over 2 seeds (one model, three datasets), and its report."""
    folder = tmp_path_factory.mktemp("made-up")
    study = synthetic.study(models=1)
    synthetic.write(study, folder / "results")
    build.report(study, folder / "results", folder / "report")
    return folder


def test_deltas_of_a_study_are_those_of_its_files(made_up):
    """One cell put together by hand from the records, without the code that reads a study."""
    study, records = synthetic.study(models=1), {}
    cell = "train/model~small-28/dataset~algebra"
    for path, told in layout.products(study):
        if path.startswith(cell):
            frame = pd.read_parquet(made_up / "results/evaluate" / path / "records.parquet")
            records[told["skip_ratio"], told["mitigation"], told["seed"]] = frame["correct"].to_numpy(float)
    instances = list(dict.fromkeys((ratio, name) for ratio, name, _ in records))
    scores = np.stack([np.stack([records[*instance, seed] for seed in (0, 1)]) for instance in instances])
    expected = accuracy_deltas(scores, frame["benchmark"].to_numpy(str), 0.95)
    table = pd.read_csv(made_up / "report/deltas.csv")
    table = table[(table["dataset"] == "algebra") & (table["metric"] == "accuracy")]
    assert list(zip(table["skip_ratio"], table["mitigation"], strict=True)) == instances[1:]
    assert table["absolute_delta"].tolist() == pytest.approx([delta.absolute for delta in expected], rel=1e-4)
    assert table["relative_ci_high"].tolist() == pytest.approx([d.relative_ci_high for d in expected], rel=1e-4)
    assert table["p_holm"].tolist() == pytest.approx(list(holm([delta.p for delta in expected])), rel=1e-4)
    assert set(table["seeds"]) == {2} and set(table["covers"]) == {"seeds, problems"}


def test_what_was_put_in_is_found_and_nothing_else(made_up):
    table = pd.read_csv(made_up / "report/deltas.csv")
    resolved = table[(table["metric"] == "accuracy") & (table["verdict"] == "resolved")]
    found = set(zip(resolved["dataset"], resolved["skip_ratio"], resolved["mitigation"], strict=True))
    assert found == {(dataset, 0.15, "practical") for dataset in ("one-step", "multi-step", "algebra")}
    findings = (made_up / "report/findings.rst").read_text()
    assert "3 of 27 accuracy deltas to the baseline are resolved" in findings
    assert findings.index("What was run") < findings.index("What holds") < findings.index("What is not resolved")
    for dataset in ("one-step", "multi-step", "algebra"):
        assert f"15 % practical on small-28, {dataset}: -0." in findings
    assert "3 of 27 accuracy deltas are resolved" in (made_up / "report/caption_heat_map.rst").read_text()


def test_mcnemar_table_counts_discordant_problems(made_up):
    sources = read_sources(made_up / "report")
    table = mcnemar_table(sources)
    assert len(table) == 3 * 9 * 2 * 4  # datasets x instances x seeds x (benchmarks and all)
    row = table[(table["benchmark"] == "all problems") & (table["mitigation"] == "practical")].iloc[-1]
    chosen = sources.problem_scores[
        (sources.problem_scores["product"] == "train") & (sources.problem_scores["dataset"] == row["dataset"])
    ]
    chosen = chosen[chosen["seed"] == row["seed"]].set_index(["benchmark", "problem_id"])
    instance = chosen[(chosen["skip_ratio"] == row["skip_ratio"]) & (chosen["mitigation"] == "practical")][
        "num_correct"
    ]
    baseline = chosen[chosen["skip_ratio"] == 0]["num_correct"]
    difference = instance - baseline
    assert row["only_instance"] == (difference == 1).sum() and row["only_baseline"] == (difference == -1).sum()
    assert row["p"] == mcnemar_test(row["only_instance"], row["only_baseline"]) and row["n"] == 150


def test_speed_ups_stand_beside_their_bounds(made_up):
    table = pd.read_csv(made_up / "report/efficiency.csv")
    of_4 = table[table["num_skipped"] == 4]
    assert of_4["bound"].tolist() == pytest.approx([28 / 24] * 9, rel=1e-5)
    assert of_4["bound_with_lm_head"].tolist() == pytest.approx([33 / 29] * 9, rel=1e-5)
    assert of_4["sampling_speed_up"].tolist() == pytest.approx([28 / 24.8] * 9, abs=0.05)


def test_the_report_alone_rebuilds_itself_without_torch_in_20_seconds(made_up, tmp_path):
    """The five sources are copied, and nothing else; the tables come out the same, byte for byte."""
    report = tmp_path / "copy"
    report.mkdir()
    for name in ("results.csv", "problem_scores.parquet", "steps.csv", "config.json", "provenance.json"):
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


def test_a_report_without_its_sources_is_one_sentence(tmp_path):
    finished = run("nested-reft", "analyse", "--from", str(tmp_path))
    assert finished.returncode == 2 and "has no results.csv" in finished.stderr


def test_a_study_with_missing_runs_reports_and_says_which(made_up, tmp_path):
    shutil.copytree(made_up / "results", tmp_path / "results")
    cell = "model~small-28/dataset~algebra"
    shutil.rmtree(tmp_path / f"results/train/{cell}/skip_ratio~0.1/mitigation~retrace")  # both seeds failed
    (tmp_path / f"results/evaluate/train/{cell}/skip_ratio~0.05/mitigation~base/seed~1/records.parquet").unlink()
    shutil.rmtree(tmp_path / "results/evaluate/sft")
    build.report(synthetic.study(models=1), tmp_path / "results", tmp_path / "report")
    missing = read_json(tmp_path / "report/provenance.json")["missing"]
    assert sum(path.startswith("sft/") for path in missing) == 6
    assert [path.removeprefix(f"train/{cell}/") for path in missing if path.startswith("train/")] == [
        "skip_ratio~0.1/mitigation~retrace/seed~0",
        "skip_ratio~0.05/mitigation~base/seed~1",
        "skip_ratio~0.1/mitigation~retrace/seed~1",
    ]
    table = pd.read_csv(tmp_path / "report/deltas.csv")
    table = table[(table["dataset"] == "algebra") & (table["metric"] == "accuracy")].set_index(
        ["skip_ratio", "mitigation"]
    )
    assert table.loc[(0.1, "retrace"), "verdict"] == "missing" and np.isnan(table.loc[(0.1, "retrace"), "p"])
    assert table.loc[(0.05, "base"), "seeds"] == 1 and not np.isnan(table.loc[(0.05, "base"), "p"])
    findings = (tmp_path / "report/findings.rst").read_text()
    assert f"train/{cell}/skip_ratio~0.1/mitigation~retrace/seed~0" in findings
    assert "60 runs, of which 57 are here" in findings
    assert "missing" in (tmp_path / "report/heat_map.svg").read_text()
    shutil.rmtree(tmp_path / f"results/train/{cell}/skip_ratio~0.0")  # without a baseline a cell has no delta
    build.report(synthetic.study(models=1), tmp_path / "results", tmp_path / "report")
    table = pd.read_csv(tmp_path / "report/deltas.csv")
    assert set(table.loc[table["dataset"] == "algebra", "verdict"]) == {"missing"}


def test_nothing_to_report_is_one_sentence(tmp_path):
    study = synthetic.study(models=1)
    with pytest.raises(UserError, match="holds no evaluated run"):
        collect(study, tmp_path)


def test_the_yaml_of_a_study_is_settings_enough(tmp_path):
    """As the README shows it for a study with missing runs, which Snakemake would not analyse."""
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path / "results")
    program = [sys.executable, "-m", "nested_reft", "analyse", "--settings", "-"]
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "report")]
    text = yaml.safe_dump(study.model_dump())
    done = subprocess.run([*program, *places], input=text, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of which 10 are here" in (tmp_path / "report/findings.rst").read_text()
    done = subprocess.run([*program, *places], input="study: [", cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_one_seed_says_that_it_covers_problems_only(tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path / "results", effect=-1.5)
    sources = collect(study, tmp_path / "results")
    table = delta_table(sources)
    assert set(table["seeds"]) == {1}
    accuracy, speed = table[table["metric"] == "accuracy"], table[table["metric"] == "token_speed_tok_s"]
    assert set(accuracy["covers"]) == {"problems"} and set(speed["covers"]) == {"nothing"}
    assert speed["p"].isna().all() and set(speed["verdict"]) == {"not resolved"}
    assert accuracy.set_index(["skip_ratio", "mitigation"]).loc[(0.15, "practical"), "verdict"] == "resolved"
    assert "With one seed this says that two trained models differ" in captions.what_holds(accuracy, 0.05, seeds=1)
    assert "With one seed" not in captions.what_holds(accuracy, 0.05, seeds=3)


def test_config_table_lists_what_differs_from_the_paper():
    table = config_table(synthetic.study().model_dump()).set_index("key")
    assert table.loc["training.max_steps"].tolist() == ["500", "40"]
    assert set(table.index) == {"training.max_steps", "grid.seed"}


# ---- the committed report -----------------------------------------------------------------------------


def test_the_embedded_study_has_something_to_lift():
    """In the committed report each stage adds more than its interval."""
    stages = pd.read_csv(ROOT / "docs/reports/embedded/stages.csv").set_index("product")
    assert list(stages.index) == ["pretrained", "sft", "train (baseline)"]
    for before, after in (("pretrained", "sft"), ("sft", "train (baseline)")):
        gain = stages.loc[after, "accuracy"] - stages.loc[before, "accuracy"]
        assert gain > stages.loc[[before, after], "interval"].max()


def test_the_reward_of_every_embedded_run_rises():
    """In the committed report: the slope of a straight line through the reward curve, for each of the ten runs."""
    steps = pd.read_csv(ROOT / "docs/reports/embedded/steps.csv")
    slopes = {
        run: stats.linregress(curve["step"], curve["reward"]).slope
        for run, curve in steps.groupby(["skip_ratio", "mitigation"])
    }
    assert len(slopes) == 10
    assert all(slope > 0 for slope in slopes.values()), slopes


def test_the_same_table_gives_the_same_figure_files(tmp_path):
    steps = pd.read_csv(ROOT / "docs/reports/embedded/steps.csv")
    for name in ("one", "two"):
        plots.save(plots.reward_curves(steps), tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
