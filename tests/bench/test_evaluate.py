"""The measurement of evaluation."""

import json

import pytest

from tests.bench.checks import bench, check_environment_info, check_summary


@pytest.mark.slow
def test_evaluation_is_measured_with_all_samplers(tmp_path):
    few = ("--problems", "4", "--batch-size", "2", "--new-tokens", "32", "--rounds", "2", "--threads", "1")
    finished = bench("eval", "embedded/tiny-28", *few, "--json", str(tmp_path / "eval.json"))
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "eval.json").read_text())
    check_environment_info(results)
    check_summary(results["evaluation"], ["generate", "engine", "engine-compiled"], 2)
    assert set(results["problems_per_second"]) == {"generate", "engine", "engine-compiled"}
