"""The measurement of a study's speed: which roll-outs are timed, and what is kept of them."""

import json

import pytest

from nested_reft.bench import measure_speed as module
from nested_reft.bench.measure_speed import measure_speed, prompt_batches
from nested_reft.config.parse import parse_settings
from nested_reft.config.stage_settings import MeasureSpeedStage, settings_of
from nested_reft.errors import UserError
from nested_reft.model.loading import load_tokenizer
from nested_reft.records.files import read_rows, read_versioned_json, write_rows
from nested_reft.records.stage_record import StageRecord
from tests.conftest import TINY
from tests.study.tree import SMOKE


@pytest.fixture()
def settings():
    """Return the settings of the smoke study."""
    return parse_settings(MeasureSpeedStage, settings_of(SMOKE, "measure_speed", {"model": "tiny-28"}))


@pytest.fixture()
def data(tmp_path):
    """Return a training set of three problems."""
    write_rows(tmp_path / "train.jsonl", [{"problem": "What is " + "1 + " * number + "1?"} for number in range(3)])
    return tmp_path / "train.jsonl"


def test_the_settings_are_those_that_the_time_depends_on(settings):
    assert (settings.skip_ratios, settings.rounds, settings.sampler) == ([0.15], 3, "engine")
    assert (settings.prompts, settings.num_generations, settings.max_completion_length) == (2, 2, 8)
    slower = SMOKE.model_copy(update={"training": SMOKE.training.model_copy(update={"learning_rate": 1.0})})
    assert parse_settings(MeasureSpeedStage, settings_of(slower, "measure_speed", {"model": "tiny-28"})) == settings


def test_rounds_take_turns_in_the_training_sets_and_go_on_where_they_ended(settings, data, tmp_path):
    write_rows(tmp_path / "other.jsonl", [{"problem": "Say 7."}])
    tokenizer = load_tokenizer(TINY)
    batches = prompt_batches(settings, [data, tmp_path / "other.jsonl"], tokenizer, processes=1)
    assert len(batches) == 4  # of three rounds, and of the warm-up
    assert all(len(batch) == 4 and batch[0] == batch[1] and batch[2] == batch[3] for batch in batches)
    texts = [tokenizer.decode(batch[0]) for batch in batches]
    assert ["Say 7." in text for text in texts] == [False, True, False, True]
    assert "What is 1?" in texts[0] and "What is 1 + 1 + 1?" in texts[2]
    shares = prompt_batches(settings, [data], tokenizer, processes=2)
    assert [len(batch) for batch in shares] == [2] * 4


def test_an_empty_training_set_is_named(settings, data):
    data.write_text("")
    with pytest.raises(UserError, match=r"train.jsonl has no problem"):
        prompt_batches(settings, [data], load_tokenizer(TINY), processes=1)


def test_each_round_times_all_ratios_on_the_same_prompts(settings, data, tmp_path, monkeypatch):
    sampled = []
    sample = module.Sampler.sample

    def recorded(self, model, skipped, prompt_ids, *args, **kwargs):
        completions, logps = sample(self, model, skipped, prompt_ids, *args, **kwargs)
        sampled.append((len(skipped), prompt_ids, tuple(skipped), {len(row) for row in completions}))
        return completions, logps

    monkeypatch.setattr(module.Sampler, "sample", recorded)
    record = StageRecord(tmp_path / "out", "measure_speed", {"model": "tiny-28"}, {}, {}, None, "smoke")
    measure_speed(settings, TINY, [data], 1, record)
    assert [count for count, *_ in sampled] == [0, 4, 0, 4, 4, 0, 0, 4]
    assert all(lengths == {8} for *_, lengths in sampled)
    rounds = [sampled[place : place + 2] for place in (2, 4, 6)]
    assert all(first[1] == second[1] for first, second in rounds)
    assert len({skipped for count, _, skipped, _ in sampled[2:] if count}) == 3

    rows = read_rows(tmp_path / "out/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["seconds/0_skipped"] > 0 and row["seconds/4_skipped"] > 0 for row in rows)
    metrics = read_versioned_json(tmp_path / "out/metrics.json")
    assert metrics["completion_tokens"] == 32 and {"speed_up/4_skipped", "tokens_per_second/0_skipped"} < set(metrics)
    made = read_versioned_json(tmp_path / "out/run.json")
    assert (made["num_layers"], made["sampler"], made["device"]) == (28, "engine", "CPU")
    assert json.dumps(made["outputs"])


def test_a_ratio_that_leaves_too_few_layers_is_refused(settings, data, tmp_path):
    record = StageRecord(tmp_path / "out", "measure_speed", {"model": "tiny-28"}, {}, {}, None, "smoke")
    with pytest.raises(UserError, match=r"skip_ratio 0.99"):
        measure_speed(settings.model_copy(update={"skip_ratios": [0.99]}), TINY, [data], 1, record)
