"""The source files of a report: collected although runs are missing, and refused in one sentence."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_json
from nested_reft.records.lock import lock_product
from nested_reft.report import build, style
from nested_reft.report.captions import layer_dropout_note, render, report_facts
from nested_reft.report.collect import collect, missing_reason
from nested_reft.report.deltas import delta_table
from nested_reft.report.figures import figures_of_study
from nested_reft.report.figures.accuracy import heat_map
from nested_reft.report.sources import instance_label, read_sources, write_sources
from tests import synthetic
from tests.conftest import run


def test_a_report_without_its_sources_is_one_sentence(tmp_path):
    finished = run("nested-reft", "analyse", "--from", str(tmp_path))
    assert finished.returncode == 2 and "has no results.csv" in finished.stderr


def test_a_study_with_missing_runs_reports_and_says_which(made_up, tmp_path):
    shutil.copytree(made_up / "results", tmp_path / "results")
    cell = "model~small-28/dataset~algebra"
    shutil.rmtree(tmp_path / f"results/train/{cell}/skip_ratio~0.1/border~1/mitigation~retrace")  # both seeds failed
    (
        tmp_path / f"results/evaluate/train/{cell}/skip_ratio~0.05/border~1/mitigation~base/seed~1/records.parquet"
    ).unlink()
    shutil.rmtree(tmp_path / "results/evaluate/sft")
    study = synthetic.study(models=1)
    write_sources(collect(study, tmp_path / "results"), tmp_path / "report")
    sources = read_sources(tmp_path / "report")
    tables, missing = build.make_tables(sources), sources.provenance["missing"]
    assert sum(path.startswith("sft/") for path in missing) == 6
    assert [path.removeprefix(f"train/{cell}/") for path in missing if path.startswith("train/")] == [
        "skip_ratio~0.1/border~1/mitigation~retrace/seed~0",
        "skip_ratio~0.05/border~1/mitigation~base/seed~1",
        "skip_ratio~0.1/border~1/mitigation~retrace/seed~1",
    ]
    table = tables["deltas"].query("dataset == 'algebra' and metric == 'accuracy'")
    table = table.set_index(["skip_ratio", "mitigation"])
    assert table.loc[(0.1, "retrace"), "verdict"] == "missing" and np.isnan(table.loc[(0.1, "retrace"), "p"])
    assert table.loc[(0.05, "base"), "seeds"] == 1 and table.loc[(0.05, "base"), "verdict"] == "waiting"
    findings = render(report_facts(sources, tables))["findings"]
    assert f"train/{cell}/skip_ratio~0.1/border~1/mitigation~retrace/seed~0" in findings
    assert "60 runs, of which 57 are here" in findings
    assert "missing" in style.as_svg(heat_map(sources, tables))
    shutil.rmtree(tmp_path / f"results/train/{cell}/skip_ratio~0.0")  # without a baseline a cell has no delta
    table = delta_table(collect(study, tmp_path / "results"))
    assert set(table.loc[table["dataset"] == "algebra", "verdict"]) == {"missing"}


def test_a_report_lists_the_jobs_that_used_another_sampler(made_up, tmp_path):
    shutil.copytree(made_up / "results", tmp_path / "results")
    path = "train/model~small-28/dataset~algebra/skip_ratio~0.1/border~1/mitigation~retrace/seed~0"
    for file, section in ((f"{path}/run.json", "training"), (f"evaluate/{path}/run.json", "evaluation")):
        record = read_json(tmp_path / "results" / file)
        changed = {"settings": {section: {"sampler": "engine-compiled"}}, "sampler": "generate"}
        write_json(tmp_path / "results" / file, record | changed)
    write_sources(collect(synthetic.study(models=1), tmp_path / "results"), tmp_path / "report")
    sources = read_sources(tmp_path / "report")
    used = "generate in place of engine-compiled"
    assert sources.provenance["plainer_samplers"] == {path: used, f"evaluate/{path}": used}
    tables = build.make_tables(sources)
    findings = render(report_facts(sources, tables))["findings"]
    assert "**2 jobs used another sampler than the config names**" in findings
    assert f"- ``evaluate/{path}``: {used}" in findings
    assert ("another sampler", f"{path}: {used}") in tables["provenance"].itertuples(index=False, name=None)


def test_nothing_to_report_is_one_sentence(tmp_path):
    study = synthetic.study(models=1)
    with pytest.raises(UserError, match="holds no evaluated run"):
        collect(study, tmp_path)


def set_schema_version(path: Path, version: int) -> None:
    """Write another schema version into a JSON file."""
    write_json(path, read_json(path) | {"schema_version": version})


@pytest.mark.parametrize(
    "file", ["train/{run}/run.json", "train/{run}/metrics.json", "evaluate/train/{run}/metrics.json"]
)
def test_files_of_another_schema_version_are_refused_in_one_sentence(file, tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path / "results")
    run_folder = "model~small-28/dataset~one-step/skip_ratio~0.1/border~1/mitigation~retrace/seed~0"
    path = tmp_path / "results" / file.format(run=run_folder)
    set_schema_version(path, 99)
    with pytest.raises(UserError) as refusal:
        build.report(study, tmp_path / "results", tmp_path / "report")
    assert str(refusal.value).startswith(f"schema_version of {path} is 99") and "\n" not in str(refusal.value)
    assert not (tmp_path / "report").exists()


def test_a_report_of_another_schema_version_is_refused_in_one_sentence(made_up, tmp_path):
    shutil.copytree(made_up / "report", tmp_path / "report")
    set_schema_version(tmp_path / "report/provenance.json", 99)
    finished = run("nested-reft", "analyse", "--from", str(tmp_path / "report"), "--out", str(tmp_path / "out"))
    assert finished.returncode == 2 and "provenance.json is 99" in finished.stderr
    assert finished.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def without_border(report: Path) -> None:
    """Change a report's sources to those of a version whose border was the key `nesting.border`."""
    config = read_json(report / "config.json")
    config["nesting"]["border"] = config["grid"].pop("border")[0]
    write_json(report / "config.json", config)
    for name in ("results.csv", "steps.csv"):
        pd.read_csv(report / name).drop(columns="border").to_csv(report / name, index=False)
    scores = pd.read_parquet(report / "problem_scores.parquet")
    scores.drop(columns="border").to_parquet(report / "problem_scores.parquet", index=False)


def test_a_report_from_before_the_axis_border_is_rebuilt(made_up, tmp_path):
    shutil.copytree(made_up / "report", tmp_path / "old")
    without_border(tmp_path / "old")
    old, new = read_sources(tmp_path / "old"), read_sources(made_up / "report")
    assert old.config == new.config
    for name in ("results", "problem_scores", "steps"):
        one, other = getattr(old, name), getattr(new, name)
        pd.testing.assert_frame_equal(one[list(other)], other, check_dtype=False)
    tables = build.make_tables(old)
    for name in ("deltas", "mcnemar"):
        build.write_table(name, name, tables[name], tmp_path)
        assert (tmp_path / f"{name}.csv").read_text() == (made_up / f"report/{name}.csv").read_text(), name
    assert render(report_facts(old, tables))["findings"] == (made_up / "report/findings.rst").read_text()
    drawn = style.as_svg(heat_map(old, tables), layer_dropout_note(old.config))
    assert drawn == (made_up / "report/heat_map.svg").read_text()


def test_a_study_of_several_borders_names_the_border_of_each_instance(tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1, borders=2)
    synthetic.write(study, tmp_path / "results", effect=-1.5)
    write_sources(collect(study, tmp_path / "results"), tmp_path / "report")
    sources = read_sources(tmp_path / "report")
    tables = build.make_tables(sources)
    deltas = tables["deltas"]
    assert len(deltas[deltas["metric"] == "accuracy"]) == 3 * 2 * 3
    assert (deltas["seeds"] == 1).all()
    assert tables["table2"].loc[0, "worst_instance"] in ("15% border 1 practical", "15% border 2 practical")
    findings = render(report_facts(sources, tables))["findings"]
    assert "- Borders: 1, 2" in findings and "- 15% border 2 practical on small-28, one-step" in findings
    assert "the study has 19 runs, of which 19 are here" in " ".join(findings.split())
    figures = figures_of_study(sources.config)
    assert "border" not in style.as_svg(
        figures["speed_up"](sources, tables)
    )  # the measured speed is that of any border
    sources = sources._replace(details=sources.details._replace(speed_rounds=pd.DataFrame()))
    for name in ("heat_map", "off_policy", "speed_up", "reward", "frontier", "figure_one-step"):
        assert "border 2 retrace" in style.as_svg(figures[name](sources, tables)), name


@pytest.mark.parametrize(
    ("instance", "borders", "expected"),
    [
        ({"skip_ratio": 0.0, "border": 0, "mitigation": "base"}, [1, 2], "baseline"),
        ({"skip_ratio": 0.1, "border": 1, "mitigation": "retrace"}, [1], "10% retrace"),
        ({"skip_ratio": 0.1, "border": 2, "mitigation": "retrace"}, [1, 2], "10% border 2 retrace"),
        ({"border": 2, "mitigation": "retrace"}, [1, 2], "border 2 retrace"),
    ],
)
def test_the_name_of_an_instance(instance, borders, expected):
    assert instance_label(instance, {"border": borders}) == expected


def test_the_reason_of_a_missing_product_is_from_the_job_that_should_make_or_evaluate_it(tmp_path):
    results, logs = tmp_path / "results", tmp_path / "logs"
    assert missing_reason("train/x", results, logs) is None
    for job in ("train/x", "evaluate/train/x"):
        (logs / job).parent.mkdir(parents=True)
        (logs / f"{job}.log").write_text(f"Error: {job} has no memory\n")
    assert missing_reason("train/x", results, logs) == "train/x has no memory"
    with lock_product(results / "train/x"):
        assert missing_reason("train/x", results, logs) == "the job is running"
    (results / "train/x/metrics.json").touch()
    assert missing_reason("train/x", results, logs) == "evaluate/train/x has no memory"
