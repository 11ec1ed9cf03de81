"""What the log of a job says about why the job failed."""

import os
from pathlib import Path

# The sentence is at the end of a log. Logs of long trainings have many rows before it.
TAIL_BYTES = 65_536
PREFIX = "Error: "
TRACEBACK = "Traceback (most recent call last):"
# What a log ends with after Ctrl-C, by the command line or by Python.
INTERRUPTIONS = ("Aborted!", "KeyboardInterrupt")
INTERRUPTED = "the job was interrupted"
NO_LOG = "the job wrote no log"
NO_MESSAGE = (
    "the job ended without a message; it was stopped from outside, or the machine had too little memory for it"
)


def read_tail(path: Path) -> str:
    """Return the last `TAIL_BYTES` of a text file, or an empty text if the file does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_sentence(log: Path) -> str:
    """Return the sentence of a failed job's log.

    A mistake of the user is a line that begins with `Error: `. Anything else that stops a job is a traceback, whose
    exception is the first line after it that is not indented.

    Args:
        log: the path of the job's log file.

    Returns:
        One line: the last mistake without its `Error: `, else the exception of the last traceback, else a sentence
        which says that the job was interrupted, or that its log does not say why it ended.
    """
    if not log.exists():
        return NO_LOG
    lines = read_tail(log).splitlines()
    if lines and lines[-1] in INTERRUPTIONS:
        return INTERRUPTED
    mistakes = [line for line in lines if line.startswith(PREFIX)]
    if mistakes:
        return mistakes[-1].removeprefix(PREFIX)
    tracebacks = [number for number, line in enumerate(lines) if line == TRACEBACK]
    exceptions = [line for line in lines[tracebacks[-1] + 1 :] if line and line[0] != " "] if tracebacks else []
    return exceptions[0] if exceptions else NO_MESSAGE
