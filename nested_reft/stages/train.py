"""The two training stages: the SFT warm-up, and Nested-ReFT.

A stage reads settings and paths, and leaves a folder: `model/`, `run.json`, `metrics.jsonl`,
`metrics.json` and, for Nested-ReFT, `nested_layers.jsonl`. While it works, everything it needs to
continue lies in `checkpoints/` beside them.
"""

import hashlib
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, RLOOConfig, SFTConfig, SFTTrainer

from nested_reft.config.sections import (
    ConfigError,
    Nesting,
    Optimization,
    Prompt,
    Run,
    Sft,
    Training,
    check_skip_ratios,
)
from nested_reft.data.prompts import format_prompt
from nested_reft.grading.compare import correctness, first_answer_correctness
from nested_reft.model.layers import NestingError, load_model, parameter_counts
from nested_reft.records.mlflow_mirror import StageRecord, read_rows, write_rows
from nested_reft.rollout.sampler import Sampler
from nested_reft.trainer import NestedGRPOTrainer, NestedRLOOTrainer, NestedRollouts


class StepRecorder(TrainerCallback):
    """Writes a row of metrics for each optimizer step, and keeps the record in step with checkpoints."""

    def __init__(self, record: StageRecord) -> None:
        self.record = record
        self.trainer: Trainer | None = None
        self.started = 0.0
        self.update_started = 0.0
        self.update_s = 0.0
        self.tokens = 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of the step."""
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of the update."""
        self.update_started = time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock of the update."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.update_s = time.perf_counter() - self.update_started

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Complete the row that transformers logs after each step, and write it."""
        if "loss" not in logs:  # the summary at the end of training
            return
        row = {name: value for name, value in logs.items() if value is not None}
        row["perf/step_s"] = time.perf_counter() - self.started
        row["perf/optimizer_s"] = self.update_s
        row["perf/peak_memory_gib"] = peak_memory_gib()
        if isinstance(self.trainer, NestedRollouts):
            row |= self.trainer.step_metrics()
            row["num_tokens"] = state.num_input_tokens_seen  # TRL leaves it out where nothing was sampled
            row["perf/total_tok_s"] = (row["num_tokens"] - self.tokens) / row["perf/step_s"]
            self.tokens = row["num_tokens"]
        self.record.log(state.global_step, row)


def peak_memory_gib() -> float:
    """Return the most memory held so far: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def shared_arguments(settings: Optimization, output_dir: Path, seed: int) -> dict[str, Any]:
    """Return the TrainingArguments that both stages set, every one of them explicitly."""
    return {
        "output_dir": str(output_dir),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch",
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "bf16": settings.bf16,
        "fp16": False,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint: transformers writes `trainer_state.json` last, and not atomically."""
    complete = [
        path.parent
        for path in folder.glob("checkpoint-*/trainer_state.json")
        if path.read_text().rstrip().endswith("}")
    ]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def run_trainer(trainer: Trainer, recorder: StepRecorder, out: Path) -> dict[str, float]:
    """Train from the last checkpoint, or from the start, and save the model; return the run's totals.

    The wall time of a resumed run is the sum of its steps, since nobody was there between attempts.
    """
    recorder.trainer = trainer
    trainer.add_callback(recorder)
    checkpoint = last_checkpoint(recorder.record.checkpoints)
    recorder.record.resume_at(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    recorder.tokens = recorder.record.rows[-1]["num_tokens"] if recorder.record.rows else 0
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    unfinished = out / "model.part"
    trainer.save_model(str(unfinished))
    if (out / "model").exists():
        shutil.rmtree(out / "model")
    (unfinished / "training_args.bin").unlink()  # a pickle; run.json says the same in the open
    unfinished.rename(out / "model")
    return {"train_runtime_s": sum(row["perf/step_s"] for row in recorder.record.rows)}


def sft(settings: Sft, prompt: Prompt, start: Path, seed: int, data: Path, record: StageRecord) -> None:
    """Warm up on (prompt, chain of thought); the loss is on the chain of thought only."""
    model, tokenizer = load_model(start, settings.dtype)
    rows = [
        {"prompt": format_prompt(row["problem"], prompt.template), "completion": row["solution"] + tokenizer.eos_token}
        for row in read_rows(data)
    ]
    arguments = SFTConfig(
        **shared_arguments(settings, record.checkpoints, seed),
        num_train_epochs=settings.num_train_epochs,
        gradient_accumulation_steps=settings.batch_size // settings.per_device_train_batch_size,
        max_length=settings.max_length,
        truncation_mode="keep_start",
        loss_type="nll",
        packing=False,
        padding_free=False,
        completion_only_loss=True,
    )
    trainer = SFTTrainer(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    totals = run_trainer(trainer, StepRecorder(record), record.out)
    record.finish(totals | {"loss": record.rows[-1]["loss"], "num_examples": len(rows)})


def rl_trainer(
    settings: Training,
    nesting: Nesting,
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, str]],
    output_dir: Path,
) -> NestedRollouts:
    """Return the trainer of a run, with every argument of TRL's that matters written out."""
    length = settings.max_completion_length
    arguments = shared_arguments(settings, output_dir, run.seed) | {
        "max_steps": settings.max_steps,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "num_generations": settings.num_generations,
        "max_completion_length": length,
        "generation_kwargs": {"min_new_tokens": length} if settings.fixed_length else None,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": None,
        "repetition_penalty": 1.0,
        "beta": settings.beta,
        "epsilon": settings.epsilon,
        "epsilon_high": None,
        "num_iterations": settings.num_iterations,
        "steps_per_generation": settings.steps_per_generation or settings.gradient_accumulation_steps,
        "mask_truncated_completions": False,
        "disable_dropout": True,
        "shuffle_dataset": True,
        "use_vllm": False,
    }
    of_algorithm: dict[str, Any] = {
        "reward_funcs": first_answer_correctness if settings.fixed_length else correctness,
        "train_dataset": Dataset.from_list(rows),
        "processing_class": tokenizer,
        "skip_ratio": run.skip_ratio,
        "mitigation": run.mitigation,
        "nesting": nesting,
        "sampler": Sampler(settings.sampler, getattr(torch, settings.sampling_dtype or "", None)),
    }
    if settings.algorithm == "rloo":
        rloo = RLOOConfig(**arguments, normalize_advantages=False, reward_clip_range=None)
        return NestedRLOOTrainer(model, args=rloo, **of_algorithm)
    grpo = GRPOConfig(
        **arguments,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        importance_sampling_level=settings.importance_sampling_level,
        delta=None,
        multi_objective_aggregation="sum_then_normalize",
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        off_policy_mask_threshold=None,
    )
    return NestedGRPOTrainer(model, args=grpo, **of_algorithm)


def train(
    settings: Training, nesting: Nesting, prompt: Prompt, run: Run, start: Path, data: Path, record: StageRecord
) -> None:
    """Train one run of the grid: Nested-ReFT from the SFT model, by GRPO or RLOO."""
    rows = [
        {"prompt": format_prompt(row["problem"], prompt.template), "answer": row["answer"]} for row in read_rows(data)
    ]
    if len(rows) < settings.prompts_per_generation:
        raise ConfigError(
            f"{data} has {len(rows)} problems, fewer than the {settings.prompts_per_generation} of a step "
            "(training.prompts_per_step); take a larger dataset or fewer prompts per step"
        )
    model, tokenizer = load_model(start, settings.dtype)
    config = model.config.get_text_config()
    if run.skip_ratio > 0:
        try:  # a local model was checked before any job started, one from the hub is known only now
            check_skip_ratios(run.model, config.to_dict(), nesting.border, [run.skip_ratio])
        except ValueError as error:
            raise ConfigError(f"the config {error}") from None
    try:
        trainer = rl_trainer(settings, nesting, run, model, tokenizer, rows, record.checkpoints)
    except NestingError as error:
        raise ConfigError(f"model {run.model} cannot be trained: {error}") from None
    totals = run_trainer(trainer, StepRecorder(record), record.out)
    masks = {row["nesting/mask_step"]: row["nesting/skipped_layers"] for row in record.rows}
    write_rows(
        record.out / "nested_layers.jsonl", [{"step": step, "skipped_layers": mask} for step, mask in masks.items()]
    )
    num_tokens = record.rows[-1]["num_tokens"]
    rewards = [row["reward"] for row in record.rows if "reward" in row]
    totals |= {
        "num_tokens": num_tokens,
        "token_speed_tok_s": num_tokens / totals["train_runtime_s"],
        "mean_reward": sum(rewards) / len(rewards),
    }
    totals |= {
        f"{phase}_s": sum(row.get(f"perf/{phase}_s", 0.0) for row in record.rows)
        for phase in ("generate", "score", "fwd_bwd", "optimizer")
    }
    order = [row["data/prompts_sha256"] for row in record.rows]
    layer_parameters, lm_head_parameters = parameter_counts(model)
    record.finish(
        totals,
        num_layers=config.num_hidden_layers,
        layer_parameters=layer_parameters,
        lm_head_parameters=lm_head_parameters,
        num_skipped=trainer.num_skipped,
        sampler=trainer.sampler.kind,
        valid_layers=trainer.valid_layers,
        data_order_sha256=hashlib.sha256(json.dumps(order).encode()).hexdigest(),
    )
