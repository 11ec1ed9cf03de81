"""The trainer: hooks only, equal to stock TRL where nothing is skipped, and resumable."""

import inspect
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from nested_reft import training
from nested_reft.config import ConfigError, Nesting, Prompt, Run, Training
from nested_reft.grading import correctness
from nested_reft.nesting import draw_mask, nested, valid_layers
from nested_reft.prompts import format_prompt
from nested_reft.rollout import sample
from nested_reft.tracking import StageRecord, read_json, read_rows
from nested_reft.training import NestedGRPOTrainer

from .conftest import TINY

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


@pytest.fixture()
def problems():
    from nested_reft.embedded.problems import generate

    rows = generate("mixed", "train", 4, seed=3)  # two steps are an epoch: tests cross its boundary
    return [{"problem": row.problem, "solution": row.solution, "answer": row.answer} for row in rows]


@pytest.fixture()
def data(tmp_path, problems):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return tmp_path / "train.jsonl"


def run_cell(out, data, skip_ratio, mitigation, settings=SMALL):
    """Train one cell as the stage does; return its folder."""
    cell = Run(model="tiny-28", dataset="mixed", skip_ratio=skip_ratio, mitigation=mitigation, seed=0)
    record = StageRecord(out, "train", cell.model_dump(), settings.model_dump(), {}, None, "test")
    training.train(settings, Nesting(), Prompt(), cell, TINY, data, record)
    return out


def weights(folder):
    return training.load_model(folder / "model", "float32")[0].state_dict()


def untimed(folder):
    """Return the rows of a run without what is measured, which differs each time."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "time")) and "memory" not in k} for row in rows]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def stock(trainer_class, tmp_path, problems):
    """Return the weights after the same steps of a trainer of stock TRL, or of a subclass."""
    model, tokenizer = training.load_model(TINY, "float32")
    rows = [{"prompt": format_prompt(row["problem"], "qwen-math"), "answer": row["answer"]} for row in problems]
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "stock"),
        seed=0,
        data_seed=0,
        max_steps=3,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=26,
        generation_kwargs={"min_new_tokens": 26},
        beta=0.0,
        loss_type="bnpo",
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        optim="adamw_torch",
        save_strategy="no",
        disable_dropout=True,
        disable_tqdm=True,
    )
    trainer = trainer_class(model, correctness, arguments, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return model.state_dict()


@pytest.mark.parametrize("mitigation", ["base", "practical", "retrace"])
def test_without_a_skipped_layer_training_is_stock_trl_bit_for_bit(mitigation, tmp_path, data, problems):
    trained = weights(run_cell(tmp_path / "ours", data, 0.0, mitigation))
    assert not equal(trained, training.load_model(TINY, "float32")[0].state_dict())
    assert equal(trained, stock(GRPOTrainer, tmp_path, problems))


class NestedSampler(GRPOTrainer):
    """Stock TRL but for its sampler: what `practical` has to be."""

    def _generate_single_turn(self, prompt_ids, *args):
        valid = valid_layers(28, border=1)
        skipped = draw_mask(valid, 4, self.args.seed, self.state.global_step)
        with nested(self.model, skipped), torch.no_grad():
            return sample(self.model, prompt_ids, self.generation_config, self.eos_token_ids)


class NestedOldPolicy(NestedSampler):
    """The same with the behavior policy as TRL's old policy: what `base` has to be."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return output | {"old_per_token_logps": output["sampling_per_token_logps"]}


@pytest.mark.parametrize(("mitigation", "reference"), [("practical", NestedSampler), ("base", NestedOldPolicy)])
def test_mitigations_are_what_stock_trl_makes_of_nested_samples(mitigation, reference, tmp_path, data, problems):
    trained = weights(run_cell(tmp_path / "ours", data, 0.15, mitigation))
    assert equal(trained, stock(reference, tmp_path, problems))


def test_retrace_weighs_the_advantage_of_each_token_in_trls_loss(tmp_path, data, monkeypatch):
    """The loss of a micro-batch, by hand: -mean over tokens of min(1, r) A, whose ratio rho is 1 in value."""
    seen = []
    compute = NestedGRPOTrainer._compute_loss

    def compare(self, model, inputs):
        loss = compute(self, model, inputs)
        log_ratio, applied = (tensor.clone() for tensor in self._off_policy[-1])
        mask = inputs["completion_mask"].bool()
        advantages = inputs["advantages"].unsqueeze(1).expand(mask.shape)[mask]
        by_hand = -(log_ratio.exp().clamp(max=1) * advantages).mean() / self.current_gradient_accumulation_steps
        seen.append((loss.item(), by_hand.item()))
        assert torch.equal(applied, log_ratio.exp().clamp(max=1))
        return loss

    monkeypatch.setattr(NestedGRPOTrainer, "_compute_loss", compare)
    run_cell(tmp_path / "ours", data, 0.15, "retrace")
    assert len(seen) == 6 and any(abs(loss) > 1e-4 for loss, _ in seen)
    for loss, by_hand in seen:
        assert loss == pytest.approx(by_hand, abs=1e-6)


def test_the_same_seed_gives_the_same_run_and_mitigations_differ(tmp_path, data):
    one, two = (run_cell(tmp_path / name, data, 0.15, "retrace") for name in ("one", "two"))
    assert equal(weights(one), weights(two))
    assert (one / "nested_layers.jsonl").read_text() == (two / "nested_layers.jsonl").read_text()
    assert untimed(one) == untimed(two)
    practical, base = (run_cell(tmp_path / name, data, 0.15, name) for name in ("practical", "base"))
    trained = [weights(folder) for folder in (one, practical, base)]
    assert not any(equal(trained[i], trained[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_rows_hold_what_the_study_needs(tmp_path, data):
    folder = run_cell(tmp_path / "run", data, 0.15, "base")
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["nesting/num_skipped"] == len(row["nesting/skipped_layers"]) == 4
        assert row["completions/min_length"] == row["completions/max_length"] == 26  # fixed length
        assert row["sampling/kl"] > 0 and 0 < row["sampling/acceptance_rate"] < 1 and 0 < row["sampling/ess"] <= 1
        parts = [row[f"perf/{phase}_s"] for phase in ("generate", "score", "fwd_bwd", "optimizer")]
        assert all(part > 0 for part in parts) and sum(parts) <= row["perf/step_s"] * 1.01
    assert len({tuple(row["nesting/skipped_layers"]) for row in rows}) == 3  # a mask per gradient step
    metrics = read_json(folder / "metrics.json")
    assert metrics["num_tokens"] == rows[-1]["num_tokens"]
    assert metrics["token_speed_tok_s"] == pytest.approx(metrics["num_tokens"] / metrics["train_runtime_s"])
    assert not (folder / "checkpoints").exists()


def test_without_a_skipped_layer_the_measured_ratio_is_the_noise_floor(tmp_path, data):
    (row, *_) = read_rows(run_cell(tmp_path / "run", data, 0.0, "base") / "metrics.jsonl")
    assert row["sampling/raw_importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)
    assert row["sampling/acceptance_rate"] == pytest.approx(1.0, abs=1e-4)
    assert row["sampling/importance_sampling_ratio/min"] == row["sampling/importance_sampling_ratio/max"] == 1.0


def test_too_few_problems_are_one_sentence(tmp_path, data):
    data.write_text(data.read_text().split("\n")[0] + "\n")
    with pytest.raises(ConfigError, match=r"has 1 problems, fewer than training.prompts_per_step 2"):
        run_cell(tmp_path / "run", data, 0.15, "base")


def test_a_killed_run_resumes_from_its_checkpoint(tmp_path, data, monkeypatch):
    whole = run_cell(tmp_path / "whole", data, 0.15, "retrace")
    stopped = tmp_path / "stopped"
    log = StageRecord.log

    def die_at_the_third(self, step, metrics):
        if step == 3:
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(StageRecord, "log", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_cell(stopped, data, 0.15, "retrace")
    monkeypatch.setattr(StageRecord, "log", log)
    assert not (stopped / "run.json").exists() and not (stopped / "model").exists()
    run_cell(stopped, data, 0.15, "retrace")
    assert read_json(stopped / "run.json")["attempts"] == 2
    assert untimed(stopped) == untimed(whole)
    assert (stopped / "nested_layers.jsonl").read_text() == (whole / "nested_layers.jsonl").read_text()
    assert equal(weights(stopped), weights(whole))


HOOKS = {
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_generate_and_score_completions": ["inputs"],
    "_compute_loss": ["model", "inputs"],
    "_get_per_token_logps_and_entropies": [
        *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
        *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids"),
        "image_position_ids",
    ],
    "_get_train_sampler": ["dataset"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooked_signatures_are_the_ones_of_trl_1_16(hook):
    found = list(inspect.signature(getattr(GRPOTrainer, hook)).parameters)[1:]
    assert found == HOOKS[hook], (
        f"TRL changed GRPOTrainer.{hook}: read it, and NestedGRPOTrainer.{hook} in nested_reft/training.py, again; "
        "also how `sampling_per_token_logps`, `old_per_token_logps` and `advantages` are used in `_compute_loss`"
    )
    assert hook in vars(NestedGRPOTrainer)


def test_the_embedded_tokenizer_round_trips_and_its_chat_template_is_the_prompt():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for text in (
        "\\frac{1}{2} \\boxed{-12,345.67}\n\tπ ≈ 3.14159",
        "日本語\x00é",
        "if x:\n    return 1  # two  spaces",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    messages = [{"role": "user", "content": "What is 1+1?"}]
    templated = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert templated == format_prompt("What is 1+1?", "qwen-math")
