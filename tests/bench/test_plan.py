"""The comparison of the plan with small jobs: every case can be planned, and one of them runs."""

import pytest

from nested_reft.bench.plan import CASES, STEPS, Comparison, measured, plan_table, planned, study_of
from nested_reft.plan.cards import CARDS, GIB
from nested_reft.plan.cluster import PROCESS_ON_CPU

CPU = CARDS["cpu"]


def test_six_cases_or_more_were_not_fitted_to():
    others = [case for case in CASES if not case.fitted]
    assert len(others) >= 6
    assert {case.stage for case in others} == {"sft", "train"}
    assert len({case.model for case in others}) >= 4


@pytest.mark.parametrize("model", ["tiny-28", "wide-20"])
def test_the_plan_has_the_steps_of_the_job(model, tmp_path):
    for case in (case for case in CASES if case.model == model):
        study = study_of(case, tmp_path)
        settings = study.sft if case.stage == "sft" else study.training
        cost = planned(case, study, CPU)
        assert cost.gpus == 0 and cost.peak.total > 0.1 * GIB
        if case.stage == "sft":
            assert study.datasets["data"].size == STEPS * settings.batch_size
        else:
            assert settings.max_steps == STEPS


@pytest.mark.slow
def test_memory_of_a_job_is_near_its_plan(tmp_path):
    """A wide bound, because this is a test of the measurement; `bench plan` shows how near it is."""
    case = CASES[0]
    study = study_of(case, tmp_path)
    one = Comparison(case, planned(case, study, CPU), measured(case, study, tmp_path))
    memory, peak = one.memory
    assert 0.5 < memory / peak < 2
    results = {"card": CPU._asdict(), "cases": [{"row": one.row}]}
    assert "tiny-28" in plan_table(results)
    assert one.measured["memory"] > PROCESS_ON_CPU
