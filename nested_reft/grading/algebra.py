r"""Symbolic comparison of answers, in child processes that can be killed.

The algebra under it may hang inside of C code and hold the interpreter's lock, so that neither signals
nor threads can bound it. Here a request has a hard limit: a child that misses it is killed, and one that
waits already warm takes its place. Works in any thread, after a fork, and in many processes at once.
"""

import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from nested_reft.grading.algebra_worker import LIMIT_S
from nested_reft.grading.normalize import DEEPEST, deepest

Comparison = Literal["equal", "different", "unparsed", "refused", "timeout", "died"]
START_LIMIT_S = 60.0

LONGEST = 400
REMEMBERED = 10_000
FORBIDDEN = re.compile(
    r"__|\\operatorname|\\variable|\\det|\\gcd|\\lcm|\\mod\b|vmatrix|\\Gamma|rref|lambda|import|open\(|exec|eval"
    r"|\d{61}|!\s*!|!\s*\^|\d{5,}\s*!|!\s*\)\s*!"  # runs of digits; factorials of factorials, or of what is large
    r"|\^\s*\{?\s*-?\d{5,}|\d{5,}\s*\^\s*\{?\s*\d{4}"  # exponents and powers that fill memory
    r"|[)}\]]\s*\^\s*\{?\s*\d{4}"  # and those of brackets
    r"|\\binom\s*\{?\s*\d{4,}|\\binom\s*\{[^{}]*\}\s*\{?\s*\d{4,}"
)
TOWER = re.compile(r"(?:\^|\*\*)\s*\{?[^{}^*]*\{?[^{}^*]*(?:\^|\*\*)\s*\{?\s*\w+\s*\}?\s*(?:\^|\*\*)")


def refused(text: str) -> bool:
    """Whether a text is too long, too deep or too large to be handed to the algebra; no answer key holds such."""
    if len(text) > LONGEST or FORBIDDEN.search(text) or TOWER.search(text):
        return True
    return deepest(text) > DEEPEST or text.count("|") > 12 or text.count("\\frac") > 20 or text.count("-") > 40


class Worker:
    """A child process that compares; started at once, ready about a second later."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("algebra_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # nothing is left to flush for a child that died
            start_new_session=True,  # an interrupt from the keyboard is for the parent
        )
        self.ready = False

    def line(self, limit_s: float) -> str | None:
        """Return the next line that the child writes, None if it does not in time, or empty if it died."""
        assert self.process.stdout is not None
        deadline, read = time.monotonic() + limit_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not read.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                got = os.read(self.process.stdout.fileno(), 4096)
                if not got:
                    return ""
                read += got
        return read.decode().strip()

    def compare(self, expected: str, found: str, limit_s: float) -> str | None:
        """Return the child's answer, None if it took too long, or empty if it died of it."""
        if not self.ready:
            self.ready = self.line(START_LIMIT_S) == "ready"
            if not self.ready:
                self.kill()
                raise RuntimeError("the process that compares answers does not start; is math-verify installed?")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([expected, found]).encode() + b"\n")
        except BrokenPipeError:
            return ""
        return self.line(limit_s)

    def kill(self) -> None:
        """End the child, whatever it is in."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Workers:
    """The children of this process: one that is asked, and one that waits to replace it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.at_work = Worker()
        self.waiting = Worker()

    def compare(self, expected: str, found: str, limit_s: float) -> Comparison:
        """Ask, and replace the child if it does not answer."""
        with self.lock:
            answer = self.at_work.compare(expected, found, limit_s)
            if answer in ("equal", "different", "unparsed"):
                return answer  # type: ignore[return-value]
            self.at_work.kill()
            self.at_work, self.waiting = self.waiting, Worker()
            return "timeout" if answer is None else "died"


_workers: Workers | None = None
_starting = threading.Lock()


def workers() -> Workers:
    """Return the children of this process; a process that was forked gets its own."""
    global _workers
    with _starting:
        if _workers is None or _workers.owner != os.getpid():
            _workers = Workers()
        return _workers


def forget_lock_of_parent() -> None:
    """Make a new lock: a thread of the parent may have held this one when it forked."""
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=forget_lock_of_parent)


_final: dict[tuple[str, str], Comparison] = {}


def forget() -> None:
    """Forget what was compared, here and in the children, which are replaced."""
    global _workers
    _final.clear()
    if _workers is not None and _workers.owner == os.getpid():
        _workers.at_work.kill()
        _workers.waiting.kill()
    _workers = None


def compare(expected: str, found: str, limit_s: float = LIMIT_S) -> Comparison:
    """Compare two cleaned answers symbolically, within a limit of time that waiting for a turn is not counted in.

    What was decided is remembered. A `timeout` and a child that `died` are not: they may be the machine's.
    """
    if refused(expected) or refused(found):
        return "refused"
    if (expected, found) in _final:
        return _final[expected, found]
    answer = workers().compare(expected, found, limit_s)
    if answer in ("equal", "different", "unparsed"):
        if len(_final) >= REMEMBERED:
            _final.clear()
        _final[expected, found] = answer
    return answer
