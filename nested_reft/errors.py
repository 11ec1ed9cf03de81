"""Errors whose message is one sentence for the user, who can fix the cause or start the command again."""

from signal import Signals

# The end of the message of a job that continues where it stopped when it is started again.
RESUMABLE = "it is resumable: run the same command again"


class UserError(Exception):
    """A user's mistake. The message names the key or file, the value and the remedy, in one sentence.

    Control characters in a name or value are shown escaped, so that they cannot change the terminal or a log.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class NestingError(ValueError):
    """The model or a setting would make nested roll-outs silently wrong. The message says why, in one sentence."""


class PreemptedError(BaseException):
    """A signal ended a stage, which continues when its command is started again.

    It derives from BaseException as KeyboardInterrupt does, so that no library takes it for a failure of its own.

    Args:
        signal: the number of the signal.
        ended: what the signal ended, and what is kept.
    """

    def __init__(self, signal: int, ended: str) -> None:
        super().__init__(f"{Signals(signal).name} ended {ended}; {RESUMABLE}")
        self.exit_code = 128 + signal  # as a shell reports a process that a signal ended


class DivergedError(Exception):
    """A number of a training is not finite. The message names the number, the step and the remedy, in one sentence."""
