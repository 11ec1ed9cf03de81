"""The measurement for a GPU: as a toy on a CPU, and what it needs to be installed."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes", [["qwen2.5-1.5b"], pytest.param(["qwen2.5-1.5b", "qwen2.5-7b"], marks=pytest.mark.nightly)]
)
def test_the_measurement_for_a_gpu_runs_as_a_toy(shapes, tmp_path):
    command = [sys.executable, "-m", "nested_reft.bench.gpu", "--toy", "--out", str(tmp_path / "gpu.json")]
    command += ["--shapes", *shapes]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["not_measured"] == {}
    assert [row["settings"]["model"] for row in results["rollouts"]] == shapes
    for row in results["rollouts"]:
        assert set(row["generate"]["seconds"]) == {"generate", "engine-compiled", "engine"}
        assert row["log_prob_errors"]["mean"] <= row["log_prob_errors"]["largest"] < 1e-4  # float32
        assert row["new_skip_set"]["num_skipped"] == 2 and [skip["num_skipped"] for skip in row["skip"]["rows"]] == [
            1,
            2,
        ]
        assert [skip["num_skipped"] for skip in row["bandwidth"]["rows"]] == [0, 1, 2]
    assert set(results["train"]["steps"]["seconds"]) == {"stock", "engine, k = 0", "engine, k = 2"}
    assert (tmp_path / "gpu.png").exists() and (tmp_path / "gpu.svg").exists()


def test_what_does_not_fit_into_the_budget_is_named(tmp_path):
    arguments = ["--toy", "--budget", "-1", "--out", str(tmp_path / "gpu.json")]
    finished = subprocess.run(
        [sys.executable, "nested_reft/bench/gpu.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    not_measured = json.loads((tmp_path / "gpu.json").read_text())["not_measured"]
    assert set(not_measured) == {"qwen2.5-1.5b/model", "qwen2.5-7b/model", "train"}


def test_it_runs_without_the_dependencies_of_studies():
    """A machine lent for a measurement often has torch and transformers, but neither pydantic nor TRL."""
    code = (
        "import sys, nested_reft.bench.gpu; print(*(name for name in sys.modules if name.startswith('nested_reft.')))"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    folders = {name.split(".")[1] for name in finished.stdout.split()}
    assert {"bench", "rollout", "model"} <= folders
    assert not folders & {"config", "stages", "trainer", "cli", "data", "grading"}
