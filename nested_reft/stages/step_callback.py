"""The base of the callbacks that act once per optimizer step, on the row that transformers logs after it."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepCallback(TrainerCallback):
    """Calls `after_step` with the metrics of each optimizer step, before transformers saves a checkpoint."""

    def after_step(self, state: TrainerState, control: TrainerControl, metrics: Mapping[str, Any]) -> None:
        """Act on the metrics of the step that has just ended."""
        raise NotImplementedError

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        """Leave the summary at the end of a training out, which has no loss of a step."""
        if "loss" in logs:
            self.after_step(state, control, logs)
