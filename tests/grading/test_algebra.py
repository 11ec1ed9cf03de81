"""The algebra in child processes: hostile text, hanging and dying children, threads and forks."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nested_reft.grading import algebra
from nested_reft.grading.extract import boxed
from nested_reft.grading.grade import grade, is_correct
from tests.grading.cases import DIFFERENT, EQUAL, PIECES

LONGEST_S = algebra.LIMIT_S + 1


INJECTIONS = [
    "__import__('os').system('touch canary')",
    "open('canary','w')",
    "[open('canary','w'), 1]",
    "exec(\"open('canary','w')\")",
    r"\pi+open('canary','w').write('1')",
    "().__class__.__base__.__subclasses__()",
    r"\mathrm{open('canary','w')}",
    "(lambda: open('canary','w'))()",
    "1 if open('canary','w') else 2",
    r"\frac{open('canary','w')}{1}",
    r"\operatorname{eval}(open('canary','w'))",
    "sqrt(open('canary','w'))",
]


HOSTILE = [
    "10^{10^{10}}",
    "9**9**9**9",
    "9^9^9^9",
    "2^{2^{2^{49}}}",
    r"e^{e^{e^{e^{e}}}}",
    r"\sin(10^{10^{10}})",
    r"\frac{1}{10^{10^{10}}}",
    "100000!",
    "3!!!!!!!!",
    "((9!)!)!",
    r"\binom{10000000}{5000000}",
    r"\sum_{k=1}^{1000000000} k^2",
    r"\prod_{k=1}^{1000000} k",
    r"\int_0^1 x^x \sin(x^2) e^{x^3} dx",
    r"\operatorname{eye}(20000)",
    r"\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}+\sqrt{13}",
    "(x+y+z+w)^{200}-1",
    "9" * 1_000_000,
    "0." + "3" * 100_000,
    "{" * 100_000 + "7" + "}" * 100_000,
    "(" * 5000 + "7" + ")" * 5000,
    "-" * 20_000 + "7",
    r"\frac{1}{" * 2000 + "1" + "}" * 2000,
    "|" * 5000,
    ",".join(str(n) for n in range(5000)),
    r"\begin{pmatrix}" + "&".join("1" * 400) + r"\end{pmatrix}",
    "1 " * 25_000,
    r"\(" * 20_000,
    "x" * 50_000,
    "\x00" * 1000,
    "\ud800\udfff" * 100,
    "".join(chr(random.Random(0).randrange(1, 0x10FFFF)) for _ in range(2000)),
    "".join(chr(random.Random(1).randrange(32, 127)) for _ in range(50_000)),
    "٤٢",
    "a=" * 300 + "1",
    "(1,(2," * 200 + "3" + "))" * 200,
    r"\sin(\cos(\sin(\cos(x))))^{20}+\tan(x^{3}+\sqrt{x+\sqrt{x+\sqrt{x}}})^{15}",
]


def test_hostile_answers_are_wrong_in_time_and_do_nothing(tmp_path, monkeypatch):
    """No text raises, is executed, or takes longer than the limit and a second; the next answer is graded."""
    monkeypatch.chdir(tmp_path)
    is_correct(boxed(r"\sqrt{8}"), r"2\sqrt{2}")  # the children are up
    slow = 0
    for text in HOSTILE + INJECTIONS:
        for completion in (boxed(text), text):
            started = time.monotonic()
            judgement = grade(completion, "16")
            seconds = time.monotonic() - started
            assert not judgement.correct and seconds < LONGEST_S, (text[:80], judgement.how, seconds)
            slow += seconds > 1
    assert slow <= 6  # most are refused before the algebra
    for text in INJECTIONS:  # without the check that refuses them
        algebra.workers().compare(r"\sqrt{2}", text, algebra.LIMIT_S)
        algebra.workers().compare(r"\begin{pmatrix}1&2\end{pmatrix}", text, algebra.LIMIT_S)
    assert list(tmp_path.iterdir()) == []
    assert is_correct(boxed(r"\sqrt{8}"), r"2\sqrt{2}")


def test_a_child_that_hangs_or_dies_is_replaced_and_its_memory_is_bounded(monkeypatch):
    children = algebra.Workers()
    try:
        assert children.compare("1", "2", 3.0) == "different"
        stuck = children.active.process
        started = time.monotonic()
        assert children.compare("1", r"\sin(10^{10^{10}})", 1.0) == "timeout"
        assert time.monotonic() - started < 2
        assert stuck.poll() is not None and children.active.process is not stuck
        assert children.compare(r"2\sqrt{2}", r"\sqrt{8}", 3.0) == "equal"
        os.kill(children.active.process.pid, 9)
        children.active.process.wait()
        assert children.compare("1", "1", 3.0) == "equal"  # in another child
        with monkeypatch.context() as patched:
            patched.setattr(algebra.Worker, "compare", lambda *_: "")  # the answers kill every child
            assert children.compare("1", "1", 3.0) == "died"
        assert children.compare("1", "1", 3.0) == "equal"
        status = Path(f"/proc/{children.active.process.pid}/limits").read_text()
        assert f"{3 * 2**29}" in next(line for line in status.splitlines() if line.startswith("Max address space"))
    finally:
        children.kill()


def test_children_end_with_their_parent_even_in_the_middle_of_algebra():
    script = (
        "import threading, time\n"
        "from nested_reft.grading import algebra\n"
        "workers = algebra.workers()\n"
        "workers.compare('1', '1', 3.0)\n"
        "print(workers.active.process.pid, workers.standby.process.pid, flush=True)\n"
        "threading.Thread(target=workers.compare, args=('1', r'\\sin(10^{10^{10}})', 60.0), daemon=True).start()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(1.0)
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_threads_and_forks_grade_alike():
    pairs = [(boxed(found), expected, True) for found, expected in EQUAL]
    pairs += [(boxed(found), expected, False) for found, expected in DIFFERENT]
    wrong = []

    def work(seed):
        mine = random.Random(seed).sample(pairs, len(pairs))
        wrong.extend(row for row in mine if is_correct(row[0], row[1]) != row[2])

    algebra.reset()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    # A forked process inherits the parent's pipes, and must not use them.
    script = (
        "import os, sys\n"
        "from nested_reft.grading import algebra\n"
        "from nested_reft.grading.grade import is_correct\n"
        "right = lambda: is_correct(r'\\boxed{\\sqrt{8}}', r'2\\sqrt{2}')\n"
        "wrong = lambda: is_correct(r'\\boxed{\\sqrt{7}}', r'2\\sqrt{2}')\n"
        "check = lambda: right() and not wrong()\n"
        "assert check()\n"
        "pid = os.fork()\n"
        "algebra.reset()\n"
        "good = all(check() for _ in range(20))\n"
        "if pid == 0: os._exit(0 if good else 1)\n"
        "sys.exit(0 if good and os.waitpid(pid, 0)[1] == 0 else 1)\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60).returncode == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_completion_raises_in_the_algebra(text):
    assert algebra.workers().compare(r"\sqrt{2}", text, algebra.LIMIT_S) != "died"
