"""The stage `train`: its record, its reproducibility, and resuming after a kill. test_trainer.py tests the hooks."""

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOTrainer

from nested_reft.config.sections import Lora, Nesting, Prompt, Training
from nested_reft.config.stage_settings import TrainStage
from nested_reft.config.study import Run
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.grading.rewards import first_answer_correctness
from nested_reft.model.layers import parameter_counts
from nested_reft.model.loading import load_model
from nested_reft.records.completions import read_completions
from nested_reft.records.files import read_json, read_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages import calibrate
from nested_reft.stages import train as training
from nested_reft.stages.replay import replay, settings_of
from tests.conftest import TINY

SMALL = Training(
    max_steps=3,
    prompts_per_step=2,
    num_generations=4,
    max_completion_length=26,
    learning_rate=1e-3,
    per_device_train_batch_size=4,
    bf16=False,
    gradient_checkpointing=False,
    save_steps=1,
)


NESTING = Nesting()


def train_run(out, data, skip_ratio, mitigation, settings=SMALL, nesting=NESTING):
    """Train one run as the stage does; return its folder."""
    run = Run(model="tiny-28", dataset="mixed", skip_ratio=skip_ratio, border=1, mitigation=mitigation, seed=0)
    stage = TrainStage(run=run, training=settings, nesting=nesting, prompt=Prompt()).model_dump(mode="json")
    record = StageRecord(out, "train", run.model_dump(), stage, {}, None, "test")
    training.train(settings, nesting, Prompt(), run, TINY, data, record)
    return out


def weights(folder):
    return load_model(folder / "model", "float32")[0].state_dict()


def untimed(folder):
    """Return the rows of a run without what is measured, which differs each time."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "time")) and "memory" not in k} for row in rows]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def replayed(folder, mitigation):
    """Return what a replay computes for each step of a run under a mitigation."""
    settings = settings_of(folder, {})
    rows = [
        {name: value for name, value in row.items() if name != "mitigation"}
        for row in replay(folder, [mitigation], settings.nesting, settings.training)
    ]
    assert all({"sampling/kl", "clip_ratio/region_mean", "sampling/token_weight_counts"} <= row.keys() for row in rows)
    return rows


def logged(folder, like):
    """Return the rows of a run with the keys of the rows `like`."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{name: row[name] for name in other} for row, other in zip(rows, like, strict=True)]


def test_rows_hold_what_the_study_needs(tmp_path, data):
    folder = train_run(tmp_path / "run", data, 0.15, "base")
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["nesting/num_skipped"] == len(row["nesting/skipped_layers"]) == 4
        assert row["completions/min_length"] == row["completions/max_length"] == 26  # fixed length
        assert row["sampling/kl"] > 0 and 0 < row["sampling/acceptance_rate"] < 1 and 0 < row["sampling/ess"] <= 1
        parts = [row[f"perf/{phase}_s"] for phase in ("generate", "score", "fwd_bwd", "optimizer")]
        assert all(part > 0 for part in parts) and sum(parts) <= row["perf/step_s"] * 1.01
    assert len({tuple(row["nesting/skipped_layers"]) for row in rows}) == 3  # one draw per gradient step
    metrics = read_json(folder / "metrics.json")
    assert metrics["num_tokens"] == rows[-1]["num_tokens"]
    assert metrics["token_speed_tok_s"] == pytest.approx(metrics["num_tokens"] / metrics["train_runtime_s"])
    assert not (folder / "checkpoints").exists()


def test_without_a_skipped_layer_the_measured_ratio_is_the_noise_floor(tmp_path, data):
    (row, *_) = read_rows(train_run(tmp_path / "run", data, 0.0, "base") / "metrics.jsonl")
    assert row["sampling/raw_importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)
    assert row["sampling/acceptance_rate"] == pytest.approx(1.0, abs=1e-4)
    assert row["sampling/importance_sampling_ratio/min"] == row["sampling/importance_sampling_ratio/max"] == 1.0


def test_training_computes_in_bfloat16_without_a_gpu(tmp_path, data):
    settings = SMALL.model_copy(update={"max_steps": 2})
    half = train_run(tmp_path / "half", data, 0.15, "retrace", settings.model_copy(update={"bf16": True}))
    single = train_run(tmp_path / "single", data, 0.15, "retrace", settings)
    rows = read_rows(half / "metrics.jsonl"), read_rows(single / "metrics.jsonl")
    assert read_json(half / "run.json")["sampler"] == "engine"
    assert [row["step"] for row in rows[0]] == [1, 2]
    assert rows[0][0]["sampling/kl"] != rows[1][0]["sampling/kl"]  # the rounding of bfloat16 shows
    assert rows[0][0]["sampling/kl"] == pytest.approx(rows[1][0]["sampling/kl"], rel=0.5)


def test_too_few_problems_are_one_sentence(tmp_path, data):
    data.write_text(data.read_text().split("\n")[0] + "\n")
    with pytest.raises(UserError, match=r"has 1 problems, fewer than the 2 of a step"):
        train_run(tmp_path / "run", data, 0.15, "base")


def test_an_own_reward_is_weighted_and_logged_under_its_name(tmp_path, data):
    (tmp_path / "own.py").write_text(
        "def columns(prompts, completions, problem, solution, answer, **kwargs):\n"
        "    assert all(question in prompt for question, prompt in zip(problem, prompts))\n"
        "    return [float(len(solution[0]) > len(answer[0]))] * len(completions)\n"
    )
    own = {"reward_funcs": [f"{tmp_path}/own.py:columns", "correctness"], "reward_weights": [0.5, 2.0], "max_steps": 1}
    folder = train_run(tmp_path / "run", data, 0.15, "retrace", SMALL.model_copy(update=own))
    (row,) = read_rows(folder / "metrics.jsonl")
    assert row["rewards/columns/mean"] == 1.0
    assert row["reward"] == pytest.approx(0.5 + 2.0 * row["rewards/correctness/mean"])


def test_an_own_reward_that_fails_in_a_training_is_one_sentence(tmp_path, data):
    (tmp_path / "own.py").write_text(
        "def late(completions, trainer_state, **kwargs):\n"
        "    return [1 / (1 - trainer_state.global_step) for _ in completions]\n"
    )
    settings = SMALL.model_copy(update={"reward_funcs": [f"{tmp_path}/own.py:late"]})
    words = r"own.py:late, which failed at step 2 \(ZeroDivisionError: .*, in line 2 of own.py\); correct it"
    with pytest.raises(UserError, match=words):
        train_run(tmp_path / "run", data, 0.15, "base", settings)
    assert not (tmp_path / "run/model").exists()


def test_a_training_whose_rewards_are_all_none_is_one_sentence(tmp_path, data):
    (tmp_path / "own.py").write_text("def none(completions, **kwargs):\n    return [None] * len(completions)\n")
    settings = SMALL.model_copy(update={"reward_funcs": [f"{tmp_path}/own.py:none"], "max_steps": 1})
    with pytest.raises(UserError, match=r"own.py:none\) returned None for every completion, so that the training has"):
        train_run(tmp_path / "run", data, 0.15, "base", settings)


LORA = SMALL.model_copy(update={"lora": Lora(r=4), "gradient_checkpointing": True})
REUSED = SMALL.model_copy(update={"max_steps": 6, "num_iterations": 2, "steps_per_generation": 2, "save_steps": 2})


@pytest.mark.parametrize(
    ("settings", "algorithm", "nesting"),
    [
        pytest.param(SMALL, "grpo", Nesting(), id="grpo"),
        pytest.param(SMALL, "rloo", Nesting(whole_share=0.5), id="rloo, mixture"),
        pytest.param(REUSED, "grpo", Nesting(whole_share=0.25), id="reused, mixture"),
        pytest.param(LORA, "grpo", Nesting(), id="lora"),
        # test_calibrate.py has its smaller twin.
        pytest.param(
            *(LORA, "grpo", Nesting(strategy="budget", budget_tau=0.95)),
            id="lora, budget",
            marks=[pytest.mark.slow, pytest.mark.nightly],
        ),
    ],
)
def test_a_killed_run_resumes_from_its_checkpoint(settings, algorithm, nesting, tmp_path, data, monkeypatch):
    settings = settings.model_copy(update={"algorithm": algorithm, "log_completions": True})
    common = data, 0.15, "retrace", settings, nesting
    whole = train_run(tmp_path / "whole", *common)
    stopped = tmp_path / "stopped"
    log = StageRecord.log

    def die_at_the_last(self, step, metrics):
        if step == settings.max_steps:
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(StageRecord, "log", die_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        train_run(stopped, *common)
    monkeypatch.setattr(StageRecord, "log", log)
    assert not (stopped / "run.json").exists() and not (stopped / "model").exists()
    saved = {path.name for path in stopped.glob("checkpoints/checkpoint-*/*")}
    assert ("adapter_model.safetensors" in saved) == (settings.lora is not None)
    assert ("model.safetensors" in saved) == (settings.lora is None)
    monkeypatch.setattr(calibrate, "calibrate", None)  # the file of the first attempt is read
    train_run(stopped, *common)
    assert read_json(stopped / "run.json")["attempts"] == 2
    if nesting.strategy == "budget":
        assert (stopped / calibrate.FILE).read_text() == (whole / calibrate.FILE).read_text()
        assert 0 < read_json(stopped / "run.json")["num_skipped"] < 4
    assert untimed(stopped) == untimed(whole)
    assert (stopped / "skipped_layers.jsonl").read_text() == (whole / "skipped_layers.jsonl").read_text()
    assert equal(weights(stopped), weights(whole))
    tables = [pa.concat_tables(rows for _, rows in read_completions(folder)) for folder in (stopped, whole)]
    assert tables[0].equals(tables[1])
    own = replayed(stopped, "retrace")
    assert own == logged(stopped, own)  # bit for bit, also where a batch outlives an optimizer step


def test_an_adapter_without_skipped_layers_is_that_of_stock_trl_bit_for_bit(tmp_path, data):
    """The merged model of the stage and of TRL's own trainer, with LoRA as its users write it."""
    settings = LORA.model_copy(update={"sampler": "generate"})
    folder = train_run(tmp_path / "run", data, 0.0, "retrace", settings)
    run = Run(model="tiny-28", dataset="mixed", skip_ratio=0.0, border=0, mitigation="base", seed=0)
    prompts = [{"prompt": format_prompt(row["problem"], Prompt().template)} | row for row in read_rows(data)]
    model, tokenizer = load_model(TINY, "float32")
    args = training.build_trainer(settings, Nesting(), run, model, tokenizer, prompts, tmp_path / "trl").args
    stock = GRPOTrainer(
        load_model(TINY, "float32")[0],
        args=args,
        reward_funcs=first_answer_correctness,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    stock.train()
    merged = stock.model.merge_and_unload().state_dict()
    start, _ = load_model(TINY, "float32")
    assert equal(merged, weights(folder)) and not equal(merged, start.state_dict())
    facts = read_json(folder / "run.json")  # the bound on the speed-up is that of the model without its adapter
    assert (facts["layer_parameters"], facts["lm_head_parameters"]) == parameter_counts(start)
