"""A training stops at a number that is not finite, and warns when nothing is learned."""

import logging
import math

import pytest
import torch
from safetensors.torch import load_file

from nested_reft.errors import DivergedError
from nested_reft.stages.alarms import BAD_BATCH, STEPS, lost_signal
from nested_reft.trainer import NestedRollouts
from tests.stages.test_sft import SMALL as SFT
from tests.stages.test_sft import warm_up
from tests.stages.test_train import SMALL, train_run


def test_a_loss_that_is_not_a_number_stops_the_training_with_its_step_layers_and_batch(tmp_path, data, monkeypatch):
    compute = NestedRollouts._compute_loss

    def spoiled(self, model, inputs):
        loss = compute(self, model, inputs)
        return loss * math.nan if self.state.global_step == 1 else loss

    monkeypatch.setattr(NestedRollouts, "_compute_loss", spoiled)
    with pytest.raises(
        DivergedError, match=r"loss is nan, grad_norm is nan at step 2 with the layers [\d, ]+ skipped"
    ):
        train_run(tmp_path / "run", data, 0.15, "retrace")
    batch = load_file(tmp_path / "run" / BAD_BATCH)
    assert batch["0/completion_ids"].dtype == torch.int64 and batch["0/completion_ids"].shape[1] == 26
    assert "0/sampling_per_token_logps" in batch
    # No checkpoint holds the weights that the step has spoiled.
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.setattr(NestedRollouts, "_compute_loss", compute)
    assert (train_run(tmp_path / "run", data, 0.15, "retrace") / "run.json").exists()


def test_a_warm_up_that_diverges_is_stopped(tmp_path, data):
    settings = SFT.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 0.0, "num_train_epochs": 3})
    with pytest.raises(DivergedError, match=r"(loss|grad_norm) is (nan|inf).* at step \d; lower learning_rate"):
        warm_up(tmp_path / "run", data, settings)
    assert not (tmp_path / "run/model").exists()


def test_a_training_that_learns_nothing_is_warned_of():
    fine = {"reward": 0.5, "sampling/ess": 0.9}
    zero = {"reward": 0.0, "completions/clipped_ratio": 0.75}
    assert lost_signal([zero] * (STEPS - 1)) is None and lost_signal([fine, *[zero] * (STEPS - 1)]) is None
    assert "75% of the completions reached training.max_completion_length" in lost_signal([fine, *[zero] * STEPS])
    assert lost_signal([fine] * STEPS) is None
    assert "effective sample size of the last 20 steps is below 5%" in lost_signal(
        [fine | {"sampling/ess": 0.01}] * 20
    )


def test_the_warning_is_logged_once(tmp_path, data, monkeypatch, caplog):
    monkeypatch.setattr("nested_reft.stages.alarms.STEPS", 2)
    (tmp_path / "own.py").write_text("def none(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    settings = SMALL.model_copy(update={"reward_funcs": [f"{tmp_path}/own.py:none"]})
    with caplog.at_level(logging.WARNING, "nested_reft"):
        train_run(tmp_path / "run", data, 0.15, "retrace", settings)
    assert caplog.text.count("all rewards of the last 2 steps are 0") == 1
