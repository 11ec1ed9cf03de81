"""The script that a user of TRL would write."""

import re
import runpy
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("options", [[], ["--lora"]], ids=["all weights", "LoRA"])
def test_the_script_trains_prints_its_progress_and_saves_the_model(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_own_rows.py", "--steps", "5", "--out", str(tmp_path), *options])
    script = runpy.run_path(str(ROOT / "examples/train_own_rows.py"))
    (line,) = re.findall(r"^step +5: reward (0\.\d+), KL (0\.\d+) nats a token$", capsys.readouterr().out, re.M)
    assert 0.2 < float(line[0]) < 0.8 and 0 < float(line[1]) < 0.1
    assert script["trainer"].sampler.kind == "engine" and len(script["trainer"].skipped_layers) == 3
    assert (tmp_path / ("adapter_model.safetensors" if options else "model.safetensors")).exists()
