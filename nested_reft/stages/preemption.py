"""An orderly end of a training before its time limit: a signal lets it save a checkpoint, from which it continues."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nested_reft.errors import PreemptedError
from nested_reft.stages.signals import SIGNALS


class StopAtSignal(TrainerCallback):
    """Ends the training with a checkpoint after a signal, as soon as the completions sampled last are used up.

    Completions can serve several optimizer steps. A checkpoint does not hold them, so a training that resumes between
    these steps would sample others. All ranks end after the same step, whichever of them got the signal.

    Args:
        trainer: the trainer to end.
        steps_per_sample: the optimizer steps that use the same completions.
    """

    def __init__(self, trainer: Trainer, steps_per_sample: int) -> None:
        self.trainer = trainer
        self.steps_per_sample = steps_per_sample
        self.signal = 0  # that this process got
        self.ended_by = 0

    def remember(self, number: int, frame: FrameType | None) -> None:
        """Keep the signal until the end of the step."""
        self.signal = number

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint and for the end of the training."""
        accelerator = self.trainer.accelerator
        signals = accelerator.gather(torch.tensor([self.signal], device=accelerator.device))
        if signals.any() and state.global_step % self.steps_per_sample == 0 and state.global_step < state.max_steps:
            self.ended_by = int(signals.max())
            control.should_save = control.should_training_stop = True


@contextmanager
def stopped_by_signals(trainer: Trainer, steps_per_sample: int) -> Iterator[None]:
    """Let signals end the training in the block after a checkpoint.

    Args:
        trainer: the trainer that trains in the block.
        steps_per_sample: the optimizer steps that use the same completions.

    Raises:
        PreemptedError: a signal has ended the training.
    """
    stop = StopAtSignal(trainer, steps_per_sample)
    trainer.add_callback(stop)
    before = {number: signal.signal(number, stop.remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.ended_by:
        done = f"{trainer.state.global_step} of {trainer.state.max_steps}"
        raise PreemptedError(stop.ended_by, f"the training after step {done}, with a checkpoint")
