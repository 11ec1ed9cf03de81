"""Errors whose message is one sentence for the user, who can fix the cause or start the command again."""

from signal import Signals

# The end of the message of a job that continues where it stopped when it is started again.
RESUMABLE = "it is resumable: run the same command again"


class UserError(Exception):
    """A user's mistake. The message names the key or file, the value and the remedy, in one sentence."""


class NestingError(ValueError):
    """The model or a setting would make nested roll-outs silently wrong. The message says why, in one sentence."""


class PreemptedError(Exception):
    """A signal ended a training, which has saved a checkpoint and continues when its command is started again.

    Args:
        signal: the number of the signal.
        step: the optimizer step after which the training ended.
        steps: the number of its optimizer steps.
    """

    def __init__(self, signal: int, step: int, steps: int) -> None:
        name = Signals(signal).name
        super().__init__(f"{name} ended the training after step {step} of {steps}, with a checkpoint; {RESUMABLE}")
        self.exit_code = 128 + signal  # as a shell reports a process that a signal ended


class DivergedError(Exception):
    """A number of a training is not finite. The message names the number, the step and the remedy, in one sentence."""
