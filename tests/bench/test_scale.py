"""Synthetic studies of any number of runs."""

import pandas as pd
import pytest

from nested_reft.bench import scale
from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError
from nested_reft.report.collect import collect
from tests.conftest import ROOT


def test_a_synthetic_study_of_60_runs_is_complete_and_can_be_analysed(smoke_study, tmp_path):
    study = read_study(ROOT / "config/smoke.yaml")
    template = scale.find_template(study, smoke_study)
    synthetic = scale.synthetic_study(study, seeds=1, problems=4)
    scale.write_results(synthetic, template, tmp_path, steps=3, problems=4)
    sources = collect(synthetic, tmp_path / "results/scale")
    assert sources.provenance["missing"] == []
    trained = sources.results[sources.results["product"] == "train"]
    assert len(trained) == 60 * 5 and len(sources.steps) == 60 * 3
    assert set(trained["n"]) == {4} and trained["accuracy"].nunique() > 1
    assert pd.unique(trained["num_skipped"]).tolist() == [0, 1, 3, 4]


def test_a_study_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no finished study 'smoke' with a warm-up; run the study"):
        scale.find_template(read_study(ROOT / "config/smoke.yaml"), tmp_path)
