"""The signals that end a stage before its time limit.

Slurm sends SIGTERM before it kills a job, and with `--signal=B:USR1@300` SIGUSR1 five minutes before the time limit.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nested_reft.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def ended_by_signals(ended: str) -> Iterator[None]:
    """Let a signal end the block at once.

    Args:
        ended: what a signal ends, and what is kept.

    Raises:
        PreemptedError: a signal has ended the block.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise PreemptedError(number, ended)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
