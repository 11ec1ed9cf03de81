"""The stage `sft`: supervised fine-tuning on prompts and chains of thought, from which training starts."""

from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from nested_reft.config.sections import Prompt, Sft
from nested_reft.data.prompts import format_prompt
from nested_reft.model.loading import load_model
from nested_reft.model.lora import adapter_for
from nested_reft.model.optim import check_optim
from nested_reft.processes import num_processes
from nested_reft.records.files import read_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages.loop import allow_fsdp_on_cpu, check_bf16, micro_batches_of_rank, run_trainer, shared_arguments


def sft(
    settings: Sft,
    prompt: Prompt,
    start: Path,
    seed: int,
    data: Path,
    record: StageRecord,
    distributed: str = "none",
) -> None:
    """Fine-tune the model at `start` on the problems in `data`; the loss is on the chain of thought only.

    Raises:
        UserError: if the device does not support `sft.bf16` or `sft.optim`, if a target of `sft.lora` is wrong, or if
            the batch cannot be divided among the ranks.
    """
    check_bf16(settings, "sft")
    check_optim(settings, "sft", torch.cuda.is_available(), distributed)
    model, tokenizer = load_model(start, settings.dtype)
    rows = [
        {"prompt": format_prompt(row["problem"], prompt.template), "completion": row["solution"] + tokenizer.eos_token}
        for row in read_rows(data)
    ]
    arguments = SFTConfig(
        **shared_arguments(settings, record.checkpoints, seed, distributed),
        num_train_epochs=settings.num_train_epochs,
        gradient_accumulation_steps=micro_batches_of_rank(settings, "sft"),
        max_length=settings.max_length,
        truncation_mode="keep_start",
        loss_type="nll",
        packing=False,
        padding_free=False,
        completion_only_loss=True,
    )
    allow_fsdp_on_cpu(arguments)
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter_for(model, settings.lora, "sft.lora"),
    )
    totals = run_trainer(trainer, record)
    if record.is_written:
        record.finish(
            totals | {"loss": record.rows[-1]["loss"], "num_examples": len(rows)}, num_processes=num_processes()
        )
