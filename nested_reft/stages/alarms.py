"""What a training does when its numbers go wrong: it stops at one that is not finite, and warns of lost signal."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainerControl, TrainerState

from nested_reft.errors import DivergedError
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages.step_callback import StepCallback

log = logging.getLogger(__name__)

# Metrics that are finite in a sound step; a log-prob that is not finite shows in the KL divergence.
FINITE = ("loss", "grad_norm", "sampling/kl")
# A warning needs this many steps in a row.
STEPS = 20
# Below this share, the effective sample size is that of a few tokens.
SMALLEST_ESS = 0.05

BAD_BATCH = "bad_batch.safetensors"


def lost_signal(rows: list[dict[str, Any]]) -> str | None:
    """Return what the last `STEPS` rows have in common that keeps a training from learning, or None.

    Args:
        rows: the rows of all steps so far.
    """
    last = rows[-STEPS:]
    if len(last) < STEPS:
        return None
    if all(row.get("reward") == 0 for row in last):
        clipped = sum(row.get("completions/clipped_ratio", 0.0) for row in last) / STEPS
        return (
            f"all rewards of the last {STEPS} steps are 0, so that nothing is learned: {clipped:.0%} of the "
            "completions reached training.max_completion_length; other causes are a prompt.template that the model "
            "does not know, and a reward that does not recognize its answers (`nested-reft grade` shows why)"
        )
    if all(row.get("sampling/ess", 1.0) < SMALLEST_ESS for row in last):
        return (
            f"the effective sample size of the last {STEPS} steps is below {SMALLEST_ESS:.0%} of the tokens, so that "
            "a few tokens decide each step; lower the skip ratio, or choose a mitigation with bounded weights"
        )
    return None


def save_batch(trainer: Trainer, path: Path) -> str:
    """Save the tensors of the current generation batch, if there is one; return a sentence part that says where."""
    batches = getattr(trainer, "_buffered_inputs", None)
    if not batches:
        return ""
    tensors = {
        f"{number}/{name}": value.detach().cpu().clone().contiguous()
        for number, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, path)
    return f", and its batch is in {path}"


class Alarms(StepCallback):
    """Stops a training after a step whose numbers are not finite, before a checkpoint is saved, and warns once.

    Args:
        trainer: the trainer.
        record: the record of the stage, which has the row of the step already.
    """

    def __init__(self, trainer: Trainer, record: StageRecord) -> None:
        self.trainer = trainer
        self.record = record
        self.has_warned = False

    def after_step(self, state: TrainerState, control: TrainerControl, metrics: Mapping[str, Any]) -> None:
        """Look at the last row.

        Raises:
            DivergedError: a number of the step is not finite.
        """
        row = self.record.rows[-1]
        bad = [name for name in FINITE if not math.isfinite(row.get(name, 0.0))]
        if bad:
            self.record.out.mkdir(parents=True, exist_ok=True)
            where = save_batch(self.trainer, self.record.out / BAD_BATCH) if self.record.is_written else ""
            skipped = row.get("nesting/skipped_layers")
            layers = f" with the layers {', '.join(map(str, skipped))} skipped" if skipped else ""
            raise DivergedError(
                f"{', '.join(f'{name} is {row[name]}' for name in bad)} at step {state.global_step}{layers}{where}; "
                "lower learning_rate or max_grad_norm, or set bf16 to false, and run the study again"
            )
        if not self.has_warned and (sentence := lost_signal(self.record.rows)):
            log.warning("%s", sentence)
            self.has_warned = True
