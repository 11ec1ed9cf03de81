r"""Symbolic comparison of answers, in child processes that can be killed.

Computer algebra may hang inside C code while it holds the interpreter's lock, so neither signals nor
threads can bound it. Each request therefore has a hard limit in a child process: a child that exceeds it
is killed, and a standby that has already imported the algebra replaces it. Requests may come from any
thread, after a fork, and from many processes at once.
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

from nested_reft.grading.normalize import MAX_BRACKET_DEPTH, bracket_depth

Comparison = Literal["equal", "different", "unparsed", "refused", "timeout", "died"]

# The answers of a worker. Only these are cached: a `timeout` or a `died` may be due to a busy machine.
DECISIONS: dict[str | None, Comparison] = {"equal": "equal", "different": "different", "unparsed": "unparsed"}

LIMIT_S = 3.0
KERNEL_LIMIT_S = LIMIT_S + 0.5  # the child's own timer, for when its parent has died
START_LIMIT_S = 60.0
CACHE_SIZE = 10_000

MAX_LENGTH = 400
FORBIDDEN = re.compile(
    r"__|\\operatorname|\\variable|\\det|\\gcd|\\lcm|\\mod\b|vmatrix|\\Gamma|rref|lambda|import|open\(|exec|eval"
    r"|\d{61}|!\s*!|!\s*\^|\d{5,}\s*!|!\s*\)\s*!"  # runs of digits; factorials of factorials and of large numbers
    r"|\^\s*\{?\s*-?\d{5,}|\d{5,}\s*\^\s*\{?\s*\d{4}"  # exponents and powers that fill memory
    r"|[)}\]]\s*\^\s*\{?\s*\d{4}"  # large powers of brackets
    r"|\\binom\s*\{?\s*\d{4,}|\\binom\s*\{[^{}]*\}\s*\{?\s*\d{4,}"
)
POWER_TOWER = re.compile(r"(?:\^|\*\*)\s*\{?[^{}^*]*\{?[^{}^*]*(?:\^|\*\*)\s*\{?\s*\w+\s*\}?\s*(?:\^|\*\*)")


def is_refused(text: str) -> bool:
    """Whether a text is too long, too deep or too large for the algebra; no benchmark has such an expected answer."""
    if len(text) > MAX_LENGTH or FORBIDDEN.search(text) or POWER_TOWER.search(text):
        return True
    if bracket_depth(text) > MAX_BRACKET_DEPTH:
        return True
    return text.count("|") > 12 or text.count("\\frac") > 20 or text.count("-") > 40


class Worker:
    """A child process that compares answers; it is ready about a second after its start."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("algebra_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(script), str(KERNEL_LIMIT_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # a buffer would be flushed into the closed pipe of a dead child
            start_new_session=True,  # an interrupt from the keyboard is for the parent
        )
        self.ready = False

    def read_line(self, limit_s: float) -> str | None:
        """Return the next line that the child writes, None if it exceeds the limit, or empty if it died."""
        assert self.process.stdout is not None
        deadline, read = time.monotonic() + limit_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not read.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(self.process.stdout.fileno(), 4096)
                if not chunk:
                    return ""
                read += chunk
        return read.decode().strip()

    def compare(self, expected: str, found: str, limit_s: float) -> str | None:
        """Return the child's answer, None if it exceeds the limit, or empty if the child died.

        Raises:
            RuntimeError: the child does not start.
        """
        if not self.ready:
            self.ready = self.read_line(START_LIMIT_S) == "ready"
            if not self.ready:
                self.kill()
                raise RuntimeError("the process that compares answers does not start; is math-verify installed?")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([expected, found]).encode() + b"\n")
        except BrokenPipeError:
            return ""
        return self.read_line(limit_s)

    def kill(self) -> None:
        """End the child at once, even in the middle of a comparison."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Workers:
    """The children of this process: the active one compares, and the standby replaces it when it is killed."""

    def __init__(self) -> None:
        self.owner_pid = os.getpid()
        self.lock = threading.Lock()
        self.active = Worker()
        self.standby = Worker()

    def compare(self, expected: str, found: str, limit_s: float) -> Comparison:
        """Compare in the active child, and replace the child if it does not answer.

        Something else may have killed the child, so that answers with which it dies are compared twice.
        """
        with self.lock:
            for _ in range(2):
                answer = self.active.compare(expected, found, limit_s)
                if answer in DECISIONS:
                    return DECISIONS[answer]
                self.active.kill()
                self.active, self.standby = self.standby, Worker()
                if answer is None:
                    return "timeout"
            return "died"

    def kill(self) -> None:
        """End both children."""
        self.active.kill()
        self.standby.kill()


_workers: Workers | None = None
_workers_lock = threading.Lock()
_cache: dict[tuple[str, str], Comparison] = {}


def workers() -> Workers:
    """Return the children of this process, which are started on first use; a forked process gets its own."""
    global _workers
    with _workers_lock:
        if _workers is None or _workers.owner_pid != os.getpid():
            _workers = Workers()
        return _workers


def replace_lock() -> None:
    """Make a new lock after a fork: a thread of the parent may have held the old lock at the time of the fork."""
    global _workers_lock
    _workers_lock = threading.Lock()


os.register_at_fork(after_in_child=replace_lock)


def reset() -> None:
    """Empty the cache of comparisons, and end the children, which have caches too."""
    global _workers
    _cache.clear()
    if _workers is not None and _workers.owner_pid == os.getpid():
        _workers.kill()
    _workers = None


def compare(expected: str, found: str, limit_s: float = LIMIT_S) -> Comparison:
    """Compare two cleaned answers symbolically.

    Args:
        expected: the expected answer.
        found: the answer of a completion.
        limit_s: seconds that the comparison may take, not counting the wait for comparisons of other threads.
    """
    if is_refused(expected) or is_refused(found):
        return "refused"
    if (expected, found) in _cache:
        return _cache[expected, found]
    comparison = workers().compare(expected, found, limit_s)
    if comparison in DECISIONS:
        if len(_cache) >= CACHE_SIZE:
            _cache.clear()
        _cache[expected, found] = comparison
    return comparison
