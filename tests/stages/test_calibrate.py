"""The calibration of a model: its numbers, its file, and that the layers it chooses are closer to the whole model."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from nested_reft.config.sections import Nesting, Training
from nested_reft.config.stage_settings import CalibrationSettings
from nested_reft.config.study import Run
from nested_reft.data.prompts import format_prompt
from nested_reft.embedded.problems import generate
from nested_reft.model.layers import skippable_layers
from nested_reft.model.loading import load_model
from nested_reft.records.files import read_json, write_json
from nested_reft.records.stage_record import StageRecord
from nested_reft.rollout.divergence import CompletionSampler, divergences_of_sets
from nested_reft.stages import calibrate as calibration
from nested_reft.strategies import choose_layers
from tests.conftest import TINY

SETTINGS = CalibrationSettings(skip_ratios=[0.5], max_completion_length=12, num_prompts=6, num_sets=2)
PROMPTS = [format_prompt(row.problem, "qwen-math") for row in generate("mixed", "train", 16, seed=3)]


@pytest.mark.parametrize("sampler", ["engine", "generate"])
def test_a_calibration_is_a_function_of_its_seed_and_leaves_the_random_state(sampler, small_model):
    settings, tokenizer = SETTINGS.model_copy(update={"sampler": sampler}), AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(7)
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in small_model.state_dict().items()}
    found = calibration.calibrate(small_model, tokenizer, PROMPTS, settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in small_model.state_dict().items())
    torch.manual_seed(8)
    assert calibration.calibrate(small_model, tokenizer, PROMPTS, settings) == found
    another = calibration.calibrate(small_model, tokenizer, PROMPTS, settings.model_copy(update={"seed": 1}))
    assert another.layer_kl.keys() == found.layer_kl.keys() == {1, 2, 3, 4} and another != found
    assert all(kl > 0 for kl in found.layer_kl.values())
    assert list(found.overlap_p5) == [1, 2, 3] and 1 > found.overlap_p5[1] > found.overlap_p5[3] > 0


def test_a_training_reads_the_file_of_its_first_attempt(small_model, tmp_path, monkeypatch):
    small_model.save_pretrained(tmp_path / "start")
    run = Run(model="small", dataset="mixed", skip_ratio=0.5, border=1, mitigation="is", seed=3)
    training = Training(max_completion_length=12, per_device_train_batch_size=4)

    def attempt(settings):
        record = StageRecord(tmp_path / "out", "train", {}, settings, {}, None, "test")
        common = small_model, AutoTokenizer.from_pretrained(TINY), PROMPTS, tmp_path / "start", record
        return calibration.of_training(training, run, *common)

    found, path = attempt({}), tmp_path / "out/checkpoints/calibration.json"
    content = read_json(path)
    assert (content["settings"]["seed"], content["settings"]["skip_ratios"]) == (3, [0.5])
    assert len(content["model_sha256"]) == 64 and "template" not in content["settings"]
    content["layer_kl"]["2"] = 0.123
    write_json(path, content)
    again = attempt({})
    assert again == found._replace(layer_kl=found.layer_kl | {2: 0.123})  # read, bit for bit
    assert attempt({"a setting": "that has changed"}) == found  # measured again


@pytest.mark.slow
@pytest.mark.nightly  # the test of a planted calibration in test_strategies.py is its smaller twin
def test_calibrated_sets_of_tiny_28_are_closer_to_it_than_uniform_ones():
    """By the exact KL on other prompts, paired over 30 steps: the 95 % interval of the difference excludes 0."""
    model, tokenizer = load_model(TINY, "float32")
    settings = CalibrationSettings(skip_ratios=[0.15], max_completion_length=26, batch_size=16)
    prompts = [format_prompt(row.problem, "qwen-math") for row in generate("mixed", "train", 40, seed=3)]
    found, valid = calibration.calibrate(model, tokenizer, prompts[:32], settings), skippable_layers(model, 1)
    rollouts = CompletionSampler(model, tokenizer, settings).sample(tokenizer(prompts[32:])["input_ids"], [], 1)

    def kls(strategy):
        sets = [choose_layers(valid, 4, 1, step, Nesting(strategy=strategy), found) for step in range(30)]
        return np.array([kl.mean().item() for kl, _ in divergences_of_sets(model, sets, rollouts, settings)])

    uniform, calibrated = kls("uniform"), kls("calibrated")
    differences = uniform - calibrated
    mean, half_width = differences.mean(), 2.045 * differences.std(ddof=1) / 30**0.5  # t of 29 degrees of freedom
    print(
        f"KL uniform {uniform.mean():.3f}, calibrated {calibrated.mean():.3f}, less by {mean:.3f} +- {half_width:.3f}"
    )
    assert mean - half_width > 0
