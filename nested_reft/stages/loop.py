"""The code that the stages `sft` and `train` share: TRL arguments, the recorder of steps, checkpoints."""

import logging
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import is_peft_model
from transformers import PrinterCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from nested_reft.config.sections import Optimization, Sft, Training
from nested_reft.errors import UserError
from nested_reft.processes import num_processes
from nested_reft.records.files import apply_umask, discard
from nested_reft.records.progress import step_row
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages.alarms import Alarms
from nested_reft.stages.checkpoints import (
    KeepLastCheckpoint,
    check_checkpoint,
    check_processes_of,
    delete_incomplete,
    last_checkpoint,
)
from nested_reft.stages.preemption import stopped_by_signals
from nested_reft.stages.step_callback import StepCallback
from nested_reft.trainer import NestedRollouts

log = logging.getLogger(__name__)


class RowSink(Protocol):
    """Receives the metrics of each optimizer step: a stage's record, or a benchmark's list of rows."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep the metrics of a step."""


class StepRecorder(StepCallback):
    """Sends a row of metrics to a sink after each optimizer step.

    Args:
        sink: receives the rows.
        trainer: the trainer whose steps are recorded; a nested one adds its own metrics to each row.
        num_tokens: the number of tokens that a resumed run had processed before; 0 for a new run.
    """

    def __init__(self, sink: RowSink, trainer: Trainer, num_tokens: int = 0) -> None:
        self.sink = sink
        self.trainer = trainer
        self.num_tokens = num_tokens
        self.step_started = 0.0
        self.update_started = 0.0
        self.update_s = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of the step."""
        self.step_started = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of the optimizer update."""
        self.update_started = time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock of the optimizer update."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.update_s = time.perf_counter() - self.update_started

    def after_step(self, state: TrainerState, control: TrainerControl, metrics: Mapping[str, Any]) -> None:
        """Complete the row that transformers logs after each step, and send it."""
        row = {name: value for name, value in metrics.items() if value is not None}
        row["perf/step_s"] = time.perf_counter() - self.step_started
        row["perf/optimizer_s"] = self.update_s
        row["perf/peak_memory_gib"] = largest(self.trainer, peak_memory_gib())
        if isinstance(self.trainer, NestedRollouts):
            row |= self.trainer.step_record()
            row["num_tokens"] = state.num_input_tokens_seen  # TRL's log has no `num_tokens` in a step without sampling
            row["perf/total_tok_s"] = (row["num_tokens"] - self.num_tokens) / row["perf/step_s"]
            self.num_tokens = row["num_tokens"]
        elif "num_tokens" in row:  # TRL's warm-up counts from zero after a resume
            row["num_tokens"] += self.num_tokens
        self.sink.log(state.global_step, row)


class StepLogger(StepCallback):
    """Logs a row for each step that a `StepRecorder` before it has recorded.

    Args:
        record: the record of the stage.
    """

    def __init__(self, record: StageRecord) -> None:
        self.record = record

    def after_step(self, state: TrainerState, control: TrainerControl, metrics: Mapping[str, Any]) -> None:
        """Log the last row of the record."""
        log.info("%s", step_row(self.record.rows, state.max_steps))


def peak_memory_gib() -> float:
    """Return the peak memory so far, in GiB: allocated on the GPU if there is one, else resident in the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def largest(trainer: Trainer, value: float) -> float:
    """Return the largest of the values that the ranks call this function with."""
    values = trainer.accelerator.gather(torch.tensor([value], dtype=torch.float64, device=trainer.accelerator.device))
    return float(values.max())


def micro_batches_of_rank(settings: Sft | Training, section: Literal["sft", "training"]) -> int:
    """Return the number of micro-batches of an optimizer step that each rank computes.

    Raises:
        UserError: if the micro-batches cannot be divided among the ranks.
    """
    try:
        settings.check_processes(num_processes())
    except ValueError as error:
        raise UserError(f"config key `{section}` {error}") from None
    return settings.gradient_accumulation_steps // num_processes()


def check_bf16(settings: Optimization, section: Literal["sft", "training"]) -> None:
    """Refuse autocast to bfloat16 where the device that trains does not compute in it.

    Args:
        settings: the settings of the stage.
        section: the section of the configuration that the settings come from, for the message.

    Raises:
        UserError: if `bf16` is set and the device does not support it.
    """
    if not settings.bf16:
        return
    if torch.accelerator.is_available():
        device, supported = "this GPU", is_torch_bf16_gpu_available()
    else:
        device, supported = "the CPU with this build of torch", torch.amp.is_autocast_available("cpu")
    if not supported:
        key = f"{section}.bf16"
        raise UserError(f"{key} is true, but {device} cannot compute in bfloat16; set {key} to false")


# FSDP2 with a unit for each layer. The weights in a checkpoint are whole.
FSDP = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "reshard_after_forward": True,
    "state_dict_type": "FULL_STATE_DICT",
    "cpu_ram_efficient_loading": False,
}


def shared_arguments(settings: Optimization, output_dir: Path, seed: int, distributed: str = "none") -> dict[str, Any]:
    """Return the TrainingArguments that both stages set, every one of them explicitly."""
    sharding = {"fsdp": True, "fsdp_config": dict(FSDP)} if distributed == "fsdp" else {}
    return sharding | {
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
        "optim": settings.optim,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "bf16": settings.bf16,
        "fp16": False,
        # Without `use_cpu`, transformers refuses bf16 on a machine that has no GPU.
        "use_cpu": not torch.accelerator.is_available(),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": None,  # `KeepLastCheckpoint` deletes the others
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "report_to": "none",
        "ddp_find_unused_parameters": False,  # every parameter is used, and a search costs time
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,  # `StepLogger` logs a row per step
    }


def allow_fsdp_on_cpu(arguments: TrainingArguments) -> None:
    """Let accelerate shard a model on the CPU, too; call this before a trainer is made with these arguments.

    accelerate ignores FSDP among processes on the CPU, and would train by DDP. Calling them processes on GPUs changes
    nothing else, because their device and their backend are known already.
    """
    if arguments.fsdp and arguments.use_cpu:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def run_trainer(trainer: Trainer, record: StageRecord, steps_per_sample: int = 1) -> dict[str, float]:
    """Train from the last checkpoint, or from the start, and save the model; return the run's totals.

    The run time is the sum of the times of the steps, so that the time between two attempts does not count.

    Args:
        trainer: the trainer.
        record: the record of the stage.
        steps_per_sample: the optimizer steps that use the same completions.

    Raises:
        DivergedError: a number of a step is not finite.
        PreemptedError: a signal has ended the training, which continues from its checkpoint at the next attempt.
    """
    checkpoint = last_checkpoint(record.checkpoints)
    if record.is_written:
        delete_incomplete(record.checkpoints)
        if checkpoint:
            check_checkpoint(checkpoint)
            check_processes_of(checkpoint, trainer.is_fsdp_enabled)
    record.resume_at(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    num_tokens = record.rows[-1]["num_tokens"] if record.rows else 0
    trainer.remove_callback(PrinterCallback)  # it prints all metrics of a step as one dict
    trainer.add_callback(StepRecorder(record, trainer, num_tokens))
    trainer.add_callback(StepLogger(record))
    trainer.add_callback(Alarms(trainer, record))
    trainer.add_callback(KeepLastCheckpoint(trainer))
    with stopped_by_signals(trainer, steps_per_sample):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if is_peft_model(trainer.model):
        trainer.model = trainer.model.merge_and_unload()

    unfinished, model = record.out / "model.part", record.out / "model"
    trainer.save_model(str(unfinished))
    if record.is_written:
        discard(model)
        (unfinished / "training_args.bin").unlink()  # a pickle; run.json holds the same settings as text
        apply_umask(unfinished)
        unfinished.rename(model)
    return {"train_runtime_s": sum(row["perf/step_s"] for row in record.rows)}
