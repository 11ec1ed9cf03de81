"""The two training stages: the SFT warm-up, and Nested-ReFT as hooks on TRL's GRPOTrainer.

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
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from nested_reft.config import ConfigError, Nesting, Optimization, Prompt, Run, Sft, Training, check_skip_ratios
from nested_reft.grading import correctness
from nested_reft.mitigation import correct, off_policy_metrics
from nested_reft.nesting import draw_mask, nested, num_skipped, valid_layers
from nested_reft.prompts import format_prompt
from nested_reft.rollout import sample
from nested_reft.tracking import StageRecord, read_json, read_rows, write_rows


class NestedGRPOTrainer(GRPOTrainer):
    """GRPO whose roll-outs come from the nested model. TRL 1.16, by hooks only.

    - `_generate_single_turn`: sample inside `nested(...)` and hand log mu(a_t) to TRL, which pads,
      shuffles and splits them as `sampling_per_token_logps`.
    - `_compute_loss` and `_get_per_token_logps_and_entropies`: apply the mitigation with the
      log-probs of the training forward itself; TRL reads advantages and old log-probs after it.
    - the rest is bookkeeping: data order as a function of (seed, epoch), and seconds.

    With no layer skipped the behavior policy *is* the target policy: the samples are then taken as
    on-policy, bit for bit as stock TRL does, and the measured ratio is only logged, as the noise
    floor of the off-policy metrics.
    """

    def __init__(self, *args: Any, skip_ratio: float, mitigation: str, nesting: Nesting, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.model.config.get_text_config()
        self.skip_ratio = skip_ratio
        self.mitigation = mitigation
        self.retrace_lambda = nesting.retrace_lambda
        self.num_skipped = num_skipped(config.num_hidden_layers, skip_ratio)
        self.valid_layers = valid_layers(
            config.num_hidden_layers, nesting.border, getattr(config, "layer_types", None)
        )
        self.skipped: list[int] = []  # the mask of the current generation batch
        self.prompts_sha256 = ""  # of the prompts of the current generation batch, in order
        self.generated_tokens = 0
        self.seconds: dict[str, float] = defaultdict(float)  # phase -> seconds of this optimizer step
        self._inputs_of_loss: dict[str, Any] | None = None
        self._off_policy: list[tuple[torch.Tensor, torch.Tensor]] = []  # (log r, h(r)) per micro-batch

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to the phase; waits for the GPU, whose work is asynchronous."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - started

    # ---- sampling -------------------------------------------------------------------------------

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, *args: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        if not self.model.training:  # evaluation never skips
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, *args)
        self.skipped = draw_mask(self.valid_layers, self.num_skipped, self.args.seed, self.state.global_step)
        self.prompts_sha256 = hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest()
        with (
            self.timed("generate"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            nested(model, self.skipped),
        ):
            completion_ids, logps = sample(model, prompt_ids, self.generation_config, self.eos_token_ids)
        self.generated_tokens += sum(map(len, completion_ids))
        return completion_ids, logps

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        before = self.seconds["generate"]
        with self.timed("score"):
            output = super()._generate_and_score_completions(inputs)
        self.seconds["score"] -= self.seconds["generate"] - before
        return output

    # ---- loss -----------------------------------------------------------------------------------

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._inputs_of_loss = inputs = dict(inputs)
        loss = super()._compute_loss(model, inputs)
        self._inputs_of_loss = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any, Any]:
        per_token_logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._inputs_of_loss is not None and "sampling_per_token_logps" in self._inputs_of_loss:
            self._mitigate(per_token_logps, self._inputs_of_loss)
        return per_token_logps, entropies, aux_loss

    def _mitigate(self, per_token_logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Write the correction into the micro-batch. per_token_logps: log pi, (B, T), with gradient."""
        sampling_per_token_logps, mask = inputs["sampling_per_token_logps"], inputs["completion_mask"].bool()
        log_ratio = per_token_logps.detach() - sampling_per_token_logps  # (B, T)
        applied = torch.ones_like(log_ratio)
        if self.num_skipped > 0:
            correction = correct(self.mitigation, per_token_logps, sampling_per_token_logps, self.retrace_lambda)
            inputs["old_per_token_logps"] = correction.old_per_token_logps
            inputs["advantages"] = inputs["advantages"].unsqueeze(1) * correction.weight
            applied = correction.weight * torch.exp(per_token_logps.detach() - correction.old_per_token_logps)
        self._off_policy.append((log_ratio[mask], applied[mask]))

    # ---- bookkeeping ----------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Time forward and backward apart from what was done to fill the batch."""
        before = self.seconds["generate"] + self.seconds["score"]
        with self.timed("fwd_bwd"):
            loss = super().training_step(*args, **kwargs)
        self.seconds["fwd_bwd"] -= self.seconds["generate"] + self.seconds["score"] - before
        return loss

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        sampler = super()._get_train_sampler(dataset)

        def set_epoch(epoch: int) -> None:
            """Bring the generator to where an uninterrupted run has it: one permutation drawn per epoch before."""
            sampler.generator.manual_seed(self.args.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        # transformers calls set_epoch where there is one. TRL's sampler has none, so that a run resumed
        # in a later epoch would see the first epoch's order again.
        sampler.set_epoch = set_epoch
        return sampler

    def step_metrics(self) -> dict[str, Any]:
        """Return, and forget, what this optimizer step measured."""
        log_ratio, applied = (torch.cat(tensors) for tensors in zip(*self._off_policy, strict=True))
        metrics: dict[str, Any] = dict(off_policy_metrics(log_ratio, applied))
        metrics["nesting/skipped_layers"] = self.skipped
        metrics["data/prompts_sha256"] = self.prompts_sha256
        metrics["nesting/num_skipped"] = self.num_skipped
        metrics["nesting/skip_ratio"] = self.skip_ratio
        metrics["perf/generated_tok_s"] = self.generated_tokens / self.seconds["generate"]
        metrics |= {f"perf/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        self._off_policy.clear()
        self.seconds.clear()
        self.generated_tokens = 0
        return metrics


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
        if isinstance(self.trainer, NestedGRPOTrainer):
            row |= self.trainer.step_metrics()
            row["perf/total_tok_s"] = (row["num_tokens"] - self.tokens) / row["perf/step_s"]
            self.tokens = row["num_tokens"]
        self.record.log(state.global_step, row)


def peak_memory_gib() -> float:
    """Return the most memory held so far: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def load_model(path: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer, from safetensors and without running code from the hub."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return model, tokenizer


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


def train(
    settings: Training, nesting: Nesting, prompt: Prompt, run: Run, start: Path, data: Path, record: StageRecord
) -> None:
    """Train one run of the grid: Nested-ReFT from the SFT model, by GRPO."""
    if run.skip_ratio > 0:
        try:  # a local model was checked before any job started, one from the hub is known only now
            check_skip_ratios(run.model, read_json(start / "config.json"), nesting.border, [run.skip_ratio])
        except ValueError as error:
            raise ConfigError(f"the config {error}") from None
    rows = [
        {"prompt": format_prompt(row["problem"], prompt.template), "answer": row["answer"]} for row in read_rows(data)
    ]
    if len(rows) < settings.prompts_per_step:
        raise ConfigError(
            f"{data} has {len(rows)} problems, fewer than training.prompts_per_step {settings.prompts_per_step}; "
            "take a larger dataset or fewer prompts per step"
        )
    model, tokenizer = load_model(start, settings.dtype)
    sequences_per_step = settings.prompts_per_step * settings.num_generations
    length = settings.max_completion_length
    arguments = GRPOConfig(
        **shared_arguments(settings, record.checkpoints, run.seed),
        max_steps=settings.max_steps,
        gradient_accumulation_steps=sequences_per_step // settings.per_device_train_batch_size,
        num_generations=settings.num_generations,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length} if settings.fixed_length else None,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=None,
        repetition_penalty=1.0,
        beta=settings.beta,
        epsilon=settings.epsilon,
        epsilon_high=None,
        delta=None,
        steps_per_generation=None,  # one generation batch, hence one mask, per optimizer step
        multi_objective_aggregation="sum_then_normalize",
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        off_policy_mask_threshold=None,
        num_iterations=settings.num_iterations,
        scale_rewards=settings.scale_rewards,
        loss_type=settings.loss_type,
        importance_sampling_level=settings.importance_sampling_level,
        mask_truncated_completions=False,
        disable_dropout=True,
        shuffle_dataset=True,
        use_vllm=False,
    )
    trainer = NestedGRPOTrainer(
        model,
        reward_funcs=correctness,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        skip_ratio=run.skip_ratio,
        mitigation=run.mitigation,
        nesting=nesting,
    )
    totals = run_trainer(trainer, StepRecorder(record), record.out)
    # `draw_mask` counts the steps that are done when it draws; a row counts its own step too.
    masks = [{"step": row["step"] - 1, "skipped_layers": row["nesting/skipped_layers"]} for row in record.rows]
    write_rows(record.out / "nested_layers.jsonl", masks)
    num_tokens = record.rows[-1]["num_tokens"]
    totals |= {
        "num_tokens": num_tokens,
        "token_speed_tok_s": num_tokens / totals["train_runtime_s"],
        "mean_reward": sum(row["reward"] for row in record.rows) / len(record.rows),
    }
    totals |= {
        f"{phase}_s": sum(row[f"perf/{phase}_s"] for row in record.rows)
        for phase in ("generate", "score", "fwd_bwd", "optimizer")
    }
    order = [row["data/prompts_sha256"] for row in record.rows]
    record.finish(
        totals,
        num_layers=model.config.get_text_config().num_hidden_layers,
        num_skipped=trainer.num_skipped,
        valid_layers=trainer.valid_layers,
        data_order_sha256=hashlib.sha256(json.dumps(order).encode()).hexdigest(),
    )
