"""The stage `train`: Nested-ReFT from a warmed-up model, by GRPO or RLOO."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, RLOOConfig

from nested_reft.config.sections import Nesting, Prompt, Training
from nested_reft.config.study import Run, check_skip_ratios
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import NestingError, UserError
from nested_reft.grading.rewards import (
    REWARDS,
    Reward,
    correctness,
    explained,
    first_answer_correctness,
    load_reward,
)
from nested_reft.model.layers import parameter_counts
from nested_reft.model.loading import load_model
from nested_reft.model.lora import adapter_for
from nested_reft.model.optim import check_optim
from nested_reft.nesting import num_skipped
from nested_reft.processes import num_processes
from nested_reft.records.completions import FOLDER as COMPLETIONS
from nested_reft.records.completions import CompletionLog
from nested_reft.records.files import discard, read_json, read_rows, write_json, write_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.rollout.sampler import Sampler
from nested_reft.rollout.vllm import check_installed
from nested_reft.stages import calibrate
from nested_reft.stages.completions import to_table
from nested_reft.stages.loop import allow_fsdp_on_cpu, check_bf16, micro_batches_of_rank, run_trainer, shared_arguments
from nested_reft.stages.step_callback import StepCallback
from nested_reft.strategies import CALIBRATED, Calibration
from nested_reft.trainer import NestedGRPOTrainer, NestedRLOOTrainer, NestedRollouts

log = logging.getLogger(__name__)


def reward_functions(settings: Training) -> list[Reward]:
    """Return the functions whose weighted sum is the reward of a completion."""
    if settings.reward_funcs is None:
        return [first_answer_correctness if settings.fixed_length else correctness]
    return [REWARDS[name] if name in REWARDS else explained(name, load_reward(name)) for name in settings.reward_funcs]


def build_trainer(
    settings: Training,
    nesting: Nesting,
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, str]],
    output_dir: Path,
    distributed: str = "none",
    calibration: Calibration | None = None,
) -> NestedRollouts:
    """Return the trainer of a run. Every argument of TRL that affects the result is set explicitly."""
    length = settings.max_completion_length
    micro_batches = micro_batches_of_rank(settings, "training")
    training_arguments = shared_arguments(settings, output_dir, run.seed, distributed) | {
        "max_steps": settings.max_steps,
        "gradient_accumulation_steps": micro_batches,
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
        "epsilon_high": settings.epsilon_high,
        "num_iterations": settings.num_iterations,
        "steps_per_generation": (
            settings.steps_per_generation // num_processes() if settings.steps_per_generation else micro_batches
        ),
        "reward_weights": settings.reward_weights,
        "mask_truncated_completions": False,
        "disable_dropout": True,
        "shuffle_dataset": True,
        "use_vllm": False,
    }
    trainer_arguments: dict[str, Any] = {
        "reward_funcs": reward_functions(settings),
        "train_dataset": Dataset.from_list(rows),
        "processing_class": tokenizer,
        "peft_config": adapter_for(model, settings.lora, "training.lora"),
        "skip_ratio": run.skip_ratio,
        "border": run.border,
        "mitigation": run.mitigation,
        "nesting": nesting,
        "calibration": calibration,
        "sampler": Sampler(settings.sampler, getattr(torch, settings.sampling_dtype or "", None), sleeps=True),
        "keep_completions": settings.log_completions,
        "share_prompts": settings.share_prompts,
    }
    if settings.algorithm == "rloo":
        rloo = RLOOConfig(**training_arguments, normalize_advantages=False, reward_clip_range=None)
        allow_fsdp_on_cpu(rloo)
        return NestedRLOOTrainer(model, args=rloo, **trainer_arguments)
    grpo = GRPOConfig(
        **training_arguments,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        importance_sampling_level=settings.importance_sampling_level,
        delta=None,
        multi_objective_aggregation="sum_then_normalize",
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        off_policy_mask_threshold=None,
    )
    allow_fsdp_on_cpu(grpo)
    return NestedGRPOTrainer(model, args=grpo, **trainer_arguments)


class CompletionRecorder(StepCallback):
    """Writes the completions of all ranks in each optimizer step.

    Args:
        trainer: the trainer, which keeps the completions of its last step.
        completion_log: the record that they are added to.
    """

    def __init__(self, trainer: NestedRollouts, completion_log: CompletionLog) -> None:
        self.trainer = trainer
        self.completion_log = completion_log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue the record at the checkpoint from which the training resumes, or begin it."""
        self.completion_log.resume_at(state.global_step)

    def after_step(self, state: TrainerState, control: TrainerControl, metrics: Mapping[str, Any]) -> None:
        """Add the step. transformers logs a step before it saves a checkpoint, so that the files are never behind."""
        trainer = self.trainer
        rows = to_table(
            state.global_step,
            trainer.micro_batches,
            trainer.accelerator.num_processes,
            trainer.skipped_layers,
            trainer.reward_func_names,
            trainer.mitigation,
            trainer.nesting,
            trainer.processing_class,
        )
        is_last = control.should_save or state.global_step == state.max_steps
        self.completion_log.add(state.global_step, rows, is_last)


def train(
    settings: Training,
    nesting: Nesting,
    prompt: Prompt,
    run: Run,
    start: Path,
    data: Path,
    record: StageRecord,
    distributed: str = "none",
) -> None:
    """Train one run of the grid: Nested-ReFT from the model at `start`, by GRPO or RLOO.

    Raises:
        UserError: if the data hold too few problems, if the model cannot be nested as configured, if the device does
            not support `training.bf16` or `training.optim`, if `training.sampler` is not installed, if a target of
            `training.lora` is wrong, if the batch cannot be divided among the ranks, if ranks differ, or if a reward
            function fails or judges no completion.
    """
    check_bf16(settings, "training")
    check_optim(settings, "training", torch.cuda.is_available(), distributed)
    if settings.sampler == "vllm":
        check_installed("training.sampler")
    # TRL passes all columns but the prompt to the reward functions.
    rows = [
        {"prompt": format_prompt(row["problem"], prompt.template)}
        | {column: row[column] for column in ("problem", "solution", "answer")}
        for row in read_rows(data)
    ]
    if len(rows) < settings.prompts_per_generation:
        raise UserError(
            f"{data} has {len(rows)} problems, fewer than the {settings.prompts_per_generation} of a step "
            "(training.prompts_per_step); take a larger dataset or fewer prompts per step"
        )
    model, tokenizer = load_model(start, settings.dtype)
    layer_parameters, lm_head_parameters = parameter_counts(model)  # without an adapter, before the model is sharded
    config = model.config.get_text_config()
    if run.skip_ratio > 0:
        try:  # a local model was checked before any job started; a model from the hub can only be checked here
            check_skip_ratios(run.model, config.to_dict(), run.border, [run.skip_ratio])
        except ValueError as error:
            raise UserError(f"the config {error}") from None
    calibration = None
    try:
        if run.skip_ratio > 0 and nesting.strategy in CALIBRATED:
            prompts = [row["prompt"] for row in rows]
            calibration = calibrate.of_training(settings, run, model, tokenizer, prompts, start, record)
        trainer = build_trainer(
            settings, nesting, run, model, tokenizer, rows, record.checkpoints, distributed, calibration
        )
    except NestingError as error:
        raise UserError(f"model {run.model} cannot be trained: {error}") from None
    if record.is_written:
        if trainer.num_skipped < num_skipped(config.num_hidden_layers, run.skip_ratio):
            log.warning(
                "nesting.strategy budget skips %d layers where skip_ratio %g asks for more, because the overlap would "
                "be below nesting.budget_tau %g; %s has the overlaps",
                *(trainer.num_skipped, run.skip_ratio, nesting.budget_tau, record.checkpoints / calibrate.FILE),
            )
        if settings.log_completions:
            completion_log = CompletionLog(record.out / COMPLETIONS, settings.completions_total_limit)
            trainer.add_callback(CompletionRecorder(trainer, completion_log))
        else:
            discard(record.out / COMPLETIONS)  # of an earlier product
    try:
        totals = run_trainer(trainer, record, settings.optimizer_steps_per_generation)
    except NestingError as error:
        raise UserError(f"the training of {run.model} has ended: {error}") from None
    if not record.is_written:
        return
    rewards = [row["reward"] for row in record.rows if "reward" in row]
    if not rewards:
        raise UserError(
            f"training.reward_funcs ({', '.join(settings.reward_funcs or [])}) returned None for every completion, so "
            "that the training has learned nothing; return a number for each completion that shall count"
        )
    skipped_layers = {row["nesting/sampled_at_step"]: row["nesting/skipped_layers"] for row in record.rows}
    write_rows(
        record.out / "skipped_layers.jsonl",
        [{"step": step, "skipped_layers": layers} for step, layers in skipped_layers.items()],
    )
    if calibration is None:
        (record.out / calibrate.FILE).unlink(missing_ok=True)  # of an earlier product
    else:
        write_json(record.out / calibrate.FILE, read_json(record.checkpoints / calibrate.FILE))
    num_tokens = record.rows[-1]["num_tokens"]
    totals |= {
        "num_tokens": num_tokens,
        "token_speed_tok_s": num_tokens / totals["train_runtime_s"],
        "mean_reward": sum(rewards) / len(rewards),
    }
    totals |= {
        f"{phase}_s": sum(row.get(f"perf/{phase}_s", 0.0) for row in record.rows)
        for phase in ("generate", "score", "fwd_bwd", "optimizer")
    }
    prompt_digests = [row["data/prompts_sha256"] for row in record.rows]
    record.finish(
        totals,
        num_layers=config.num_hidden_layers,
        layer_parameters=layer_parameters,
        lm_head_parameters=lm_head_parameters,
        num_processes=num_processes(),
        num_skipped=trainer.num_skipped,
        sampler=trainer.sampler.kind,
        valid_layers=trainer.valid_layers,
        data_order_sha256=hashlib.sha256(json.dumps(prompt_digests).encode()).hexdigest(),
    )
