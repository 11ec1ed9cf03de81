"""The measurement of roll-outs by vLLM."""

import importlib.util
import json

import pytest

from tests.bench.checks import bench, check_environment_info
from tests.conftest import needs_vllm


@needs_vllm
def test_roll_outs_by_vllm_and_pushes_are_measured(tmp_path, wide_heads):
    few = ("--prompts", "1", "--generations", "2", "--prompt-length", "4", "--new-tokens", "8", "--rounds", "2")
    more = ("--skip-ratios", "0.3", "--threads", "1", "--sampler", "engine", "--json", str(tmp_path / "vllm.json"))
    finished = bench("vllm", str(wide_heads), *few, *more)
    assert finished.returncode == 0, finished.stderr
    assert "| vllm, k = 2 |" in finished.stdout and "share of the roll-out" in finished.stdout
    results = json.loads((tmp_path / "vllm.json").read_text())
    check_environment_info(results)
    rollouts = ["engine", "generate", "vllm, k = 0", "vllm, k = 2"]
    assert list(results["rollouts"]["seconds"]) == rollouts and results["rollouts"]["baseline"] == "generate"
    assert all(0 < share["median"] < 1 for share in results["share_of_push"].values())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_its_measurement_is_one_sentence(wide_heads):
    finished = bench("vllm", str(wide_heads))
    assert finished.returncode == 2
    assert finished.stderr.startswith("Error: the measured sampler is 'vllm', which is not installed; `pip install")
