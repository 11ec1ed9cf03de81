"""What the two training stages share: arguments, the recorder of steps, checkpoints."""

import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nested_reft.config.sections import Optimization
from nested_reft.records.stage_record import StageRecord
from nested_reft.trainer import NestedRollouts


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
            row |= self.trainer.generation_record()
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
