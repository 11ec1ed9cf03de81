"""Trainings whose completions vLLM samples: the ratio, its resumption after a kill, and the sampler `engine`."""

import numpy as np
import pytest
import torch

from nested_reft.config.sections import Nesting, Prompt, Training
from nested_reft.config.stage_settings import TrainStage
from nested_reft.config.study import Run
from nested_reft.model.loading import load_model
from nested_reft.records.files import read_json, read_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages import train as training
from tests.conftest import needs_vllm

SETTINGS = Training(
    sampler="vllm",
    max_steps=10,
    prompts_per_step=4,
    num_generations=8,
    max_completion_length=24,
    learning_rate=1e-3,
    per_device_train_batch_size=16,
    bf16=False,
    gradient_checkpointing=False,
    save_steps=4,
)


@pytest.fixture()
def reward(tmp_path):
    """Return a reward that a random model can earn: the share of digits in a completion."""
    (tmp_path / "digits.py").write_text(
        "def digits(completions, **kwargs):\n"
        "    return [sum(map(str.isdigit, text)) / (1 + len(text)) for text in completions]\n"
    )
    return f"{tmp_path}/digits.py:digits"


def train_run(out, model, data, skip_ratio, settings):
    """Train one run as the stage does; return its folder."""
    run = Run(model="wide-heads", dataset="mixed", skip_ratio=skip_ratio, border=1, mitigation="retrace", seed=0)
    stage = TrainStage(run=run, training=settings, nesting=Nesting(), prompt=Prompt()).model_dump(mode="json")
    record = StageRecord(out, "train", run.model_dump(), stage, {}, None, "test")
    training.train(settings, Nesting(), Prompt(), run, model, data, record)
    return out


def weights(folder):
    return load_model(folder / "model", "float32")[0].state_dict()


@needs_vllm
@pytest.mark.parametrize("skip_ratio", [0.0, 0.3])
def test_a_training_by_vllm_resumes_after_a_kill(skip_ratio, tmp_path, data, wide_heads, reward, monkeypatch):
    settings = SETTINGS.model_copy(update={"reward_funcs": [reward]})
    whole = train_run(tmp_path / "whole", wide_heads, data, skip_ratio, settings)
    log = StageRecord.log

    def die_at_step_six(self, step, metrics):
        if step == 6:
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(StageRecord, "log", die_at_step_six)
    with pytest.raises(KeyboardInterrupt):
        train_run(tmp_path / "stopped", wide_heads, data, skip_ratio, settings)
    monkeypatch.setattr(StageRecord, "log", log)
    stopped = train_run(tmp_path / "stopped", wide_heads, data, skip_ratio, settings)
    facts = read_json(stopped / "run.json")
    assert facts["attempts"] == 2 and facts["sampler"] == "vllm"
    found, start = weights(stopped), load_model(wide_heads, "float32")[0].state_dict()
    for name, weight in weights(whole).items():
        assert torch.equal(found[name], weight), name
    assert not torch.equal(found["model.layers.2.mlp.up_proj.weight"], start["model.layers.2.mlp.up_proj.weight"])
    rows = read_rows(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert row["nesting/num_skipped"] == round(6 * skip_ratio)
        if skip_ratio == 0:  # log mu is that of the current weights
            assert row["sampling/raw_importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-3)
            assert row["sampling/raw_importance_sampling_ratio/max"] == pytest.approx(1, abs=1e-3)
        else:
            assert row["sampling/kl"] > 0.01


@needs_vllm
def test_the_divergence_of_the_policies_is_that_of_the_engine(tmp_path, data, wide_heads, reward):
    """At a learning rate that changes nothing, `sampling/kl` of both samplers estimates the same numbers."""
    settings = SETTINGS.model_copy(update={"reward_funcs": [reward], "learning_rate": 1e-12, "max_steps": 6})
    kl = {}
    for sampler in ("vllm", "engine"):
        run = settings.model_copy(update={"sampler": sampler})
        rows = read_rows(train_run(tmp_path / sampler, wide_heads, data, 0.3, run) / "metrics.jsonl")
        kl[sampler] = np.array([row["sampling/kl"] for row in rows])
    difference = kl["vllm"] - kl["engine"]  # the skipped layers and prompts of a step are the same
    assert (difference != 0).all()
    assert abs(difference.mean()) < 3 * difference.std(ddof=1) / len(difference) ** 0.5
    assert abs(difference.mean()) < 0.1 * kl["engine"].mean()
