r"""Answer extraction and verification: right, and not to be hung. All answers here are our own."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_reft.bench.grading import MIXED
from nested_reft.grading import algebra as symbolic
from nested_reft.grading.compare import compare
from nested_reft.grading.extract import extract_answer, until_first_answer
from nested_reft.grading.grade import grade, is_correct
from nested_reft.grading.rewards import correctness, first_answer_correctness
from tests.conftest import DATA, needs_data, run

LONGEST_S = symbolic.LIMIT_S + 1


def boxed(answer):
    return f"so it is \\boxed{{{answer}}}"


# ---- extraction ---------------------------------------------------------------------------------


def test_the_last_box_is_the_answer():
    assert extract_answer(r"first \boxed{1}, then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert extract_answer(r"\boxed {7}") == "7"
    assert extract_answer("no box") is None
    assert extract_answer(r"\boxed 7") is None
    assert extract_answer(r"\boxed{\boxed{5}}") == "5"
    assert extract_answer(r"\boxed{ 7 } and \boxed{8") is None  # the last one has no end
    assert extract_answer(r"<think>\boxed{1}</think> so 2") is None
    assert extract_answer(r"<think>\boxed{1}</think> so \boxed{2}") == "2"
    assert extract_answer("\\boxed{" * 50_000) is None
    assert extract_answer("\\boxed{" + "{" * 100_000 + "7" + "}" * 100_001) == "{" * 100_000 + "7" + "}" * 100_000


def test_no_reward_comes_from_after_the_natural_end():
    """With the end token banned, a model goes on after its answer: that is noise, right or wrong."""
    right_then_noise, noise_then_right = r"\boxed{5} \boxed{6}", r"\boxed{6} \boxed{5}"
    assert until_first_answer(right_then_noise + " x \\boxed{") == r"\boxed{5}"
    completions, answers = [right_then_noise, noise_then_right, "5"], ["5", "5", "5"]
    assert first_answer_correctness(completions, answers) == [1.0, 0.0, 0.0]
    assert correctness(completions, answers) == [0.0, 1.0, 0.0]  # where nothing is banned the last box counts
    thought = r"<think>try \boxed{1}? no</think> so \boxed{2}"
    assert first_answer_correctness([thought + r" \boxed{1}"] * 2, ["2", "1"]) == [1.0, 0.0]


# ---- equality -----------------------------------------------------------------------------------

EQUAL = [
    ("42", "42"),
    ("42.0", "42"),
    ("-7", "\\minus 7".replace("\\minus ", "-")),
    ("025", "25"),
    ("\uff11\uff12", "12"),
    ("½", "1/2"),
    ("1,234", "1234"),
    ("1{,}234,567", "1234567"),
    (r"1\,234", "1234"),
    (r"12,\! 345", "12345"),
    ("3 1/2", "3.5"),
    (r"3\frac{1}{2}", r"\frac{7}{2}"),
    (r"\frac12", "0.5"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("1/2", r"\dfrac{2}{4}"),
    ("6.02e23", r"6.02 \times 10^{23}"),
    ("2^{10}", "1024"),
    ("1e-19", r"10^{-19}"),
    (r"\$18", "18"),
    (r"18 \text{ dollars}", "18"),
    ("18 cm^2", "18"),
    (r"15\,\mathrm{m/s}", "15"),
    ("74°", "74"),
    (r"90^{\circ}", r"90^\circ"),
    (r"28\%", "28"),
    ("0.28", r"28\%"),
    ("33.5 percent", "0.335"),
    ("x = 5", "5"),
    ("5", "x=5"),
    (r"x = 2 + 3 = 5", "5"),
    ("2 + 3 = 5", "5"),
    (r"\frac{\sqrt{3}}{3} \approx 0.577", r"\frac{\sqrt3}{3}"),
    (r"r \approx 0.577", "0.577"),
    (r"(x, y) = (3, 2)", "(3,2)"),
    (r"x \in (1, 2)", "(1,2)"),
    ("2, 3", "3,2"),
    ("2 and 3", "3, 2"),
    (r"\{1, 2\}", "2, 1"),
    (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"\\left( 3, \\frac{1}{2} \\right)", "(3,1/2)"),  # escaped twice
    (r"[2,\infty)", r"\left[2, \infty\right)"),
    (r"(-\infty,0)\cup(1,2)", r"(1,2)\cup(-\infty,0)"),
    (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("sqrt(8)", r"2\sqrt{2}"),
    ("2**(1/4)", r"\sqrt{\sqrt{2}}"),
    (r"(x+1)^2", "x^2+2x+1"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sin^2 x + \cos^2 x + y", "y + 1"),
    ("2x + 4y - 3 = 0", r"y = -\frac{1}{2}x + \frac{3}{4}"),
    ("x < 3", "3 > x"),
    ("monday", r"\text{Monday}"),
    (r"\text{(C)}", "C"),
    ("(C)", "C"),
    ("C.", r"\textbf{(C)}"),
    ("$12$", "12"),
    ("12.", "12"),
    ("2", ["3", "2"]),
    ("27", 27.0),
    ("0.3333333", "1/3"),
    (r"3\text{ million}", "3000000"),
    (r"0.1\overline{6}", r"\frac16"),
    ("2516_8", "2516_{8}"),
    ("2516", "2516_8"),
    (r"2\mathrm{i}", "2i"),
    ("(1+i)(1-i)", "2"),
    ("(1+i)^2", "2i"),
    (r"\frac{1}{i}", "-i"),
    (r"\sin 30^\circ", r"\frac12"),
    (r"\cos 36^\circ", r"\sin 54^\circ"),
    ("1<x<2", "(1,2)"),
    (r"-2 \le x \le 7", r"x \in [-2,7]"),
    ("x>2", r"(2,\infty)"),
    (r"x<-1 \text{ or } x>1", r"(-\infty,-1)\cup(1,\infty)"),
    ("2>x>1", "(1,2)"),
    (r"x\in\{1,2\}", "1,2"),
    (r"\emptyset", r"\varnothing"),
    ("∅", r"\varnothing"),
    ("{1, 2, 3}", "3,2,1"),
    (r"+\infty", r"\infty"),
    ("y = 2x + 3", "2x+3"),
    (r"a_n = 2n+1", "2n+1"),
    (r"(1, 2), (3, 4)", "(3,4),(1,2)"),
    (r"9.8\ \mathrm{m}/\mathrm{s}^2", "9.8"),
    (r"3 \times 10^{8} \mathrm{~m} / \mathrm{s}", "3e8"),
    (r"5\text{ N}\cdot\text{m}", "5"),
    (r"5 \frac{\text{m}}{\text{s}}", "5"),
    ("3 m/s", "3"),
    (r"\text{5 cm}", "5"),
    (r"12 \text{ marbles}", "12"),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}"),
    (r"3\cdot 2^{2019}", r"2^{2019}\cdot 3"),
    (r"2\cdot 2^{2019}", "2^{2020}"),
    (r"2023!", r"2022!\cdot 2023"),
    (
        r"f(x)=\left\{\begin{array}{ll}1&x>0\\0&x\le 0\end{array}\right.",
        r"\left\{\begin{array}{ll}1&x>0\\0&x\le 0\end{array}\right.",
    ),
    (r"185\\"[:-1], r"185\\"[:-1]),
]

DIFFERENT = [
    ("42", "43"),
    ("4.2", "42"),
    ("", "0"),
    ("1/0", "1"),
    (r"\frac{0}{0}", "0"),
    ("3", r"3\sqrt{13}"),
    (r"3\sqrt{13}", "3"),
    ("12", "1"),
    ("1\x002", "12"),
    ("\ud80012", "12"),
    ("\u202e21", "12"),
    ("31/2", "3 1/2"),
    (r"\frac{12}{3}", r"\frac{1}{23}"),
    ("32349", "32, 349"),
    ("1", "1,2"),
    ("1,1,2", "1,2"),
    ("-2,-2", "-2"),
    ("(2,1)", "(1,2)"),
    ("[1,2]", "(1,2)"),
    ("(1,2]", "(1,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("y = 5", "x = 5"),
    ("1", "2x + z = 1"),
    ("2x + z = 1", "1"),
    ("11a + c", "7 = 11a + c"),
    ("0", "x' + 2x = 0"),
    ("x^2+50=0", "x^2+50=1"),
    ("x^2+50=0", "y^4+7=0"),
    (r"\log_4 8 = 3/3", r"\log_4 8 = 3/2"),
    ("2=3", "N=n"),
    ("x=x", "x = 3"),
    ("x > 3", "x < 3"),
    (r"x \le 3", "x < 3"),
    ("(5)(b+2)", "(a+5)(b+2)"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{c}{\sqrt{2}}"),
    (r"\sqrt2\cos(2-\pi/4)", r"\sqrt{2}\cos(2t-\pi/4)"),
    ("3.9e-10", "0"),
    ("3.9e-10", "3.9e-11"),
    ("10^{-19}", "10^{-20}"),
    ("99999999999", "10^{11}"),
    ("99999999999999999999", "99999999999999999998"),
    ("4200", "42"),
    ("0.42", "42"),
    ("1:00", "12:00"),
    ("4:30", "4:31"),
    ("a", "A"),
    ("E'", "E"),
    ("D", "C"),
    ("Monday", "Tuesday"),
    ("2", ["3", "4"]),
    ("0.333", "1/3"),
    (r"\infty", r"-\infty"),
    (r"\{\}", r"\{1\}"),
    (r"\frac{1}{2n+1}", r"\frac{1}{2n+2}"),
    ("2^{2024}", "4^{1013}"),
    (r"\infty", "2"),
    ("10^{20}", "10^{20}+1"),
    ("2^{41}-1", "2^{41}"),
    ("50!", "50!-1"),
    (r"\binom{50}{25}", r"\binom{50}{25}+1"),
    ("(2^{41}-1)x", "2^{41}x"),
    (r"2\mathrm{i}", "2"),
    (r"\pm 2\mathrm{i}", r"\pm 2"),
    (r"3\mathrm{e}", "3"),
    (r"3\text{ million}", "3"),
    (r"12\text{ or more}", "12"),
    (r"5\text{ is not an answer}", "5"),
    (r"5\text{ squared}", "5"),
    (r"\frac12\text{ if n is even}", r"\frac12\text{ if n is odd}"),
    (r"7:30\text{ AM}", r"7:30\text{ PM}"),
    (r"20\%\text{ decrease}", r"20\%\text{ increase}"),
    (r"2\text{A}", r"2\text{B}"),
    (r"\pi", r"\pi rs"),
    ("2", "2rs"),
    ("2", "2nm"),
    ("x^{2}", "x^{2}ft"),
    ("2516_8", "2516_7"),
    ("1001_2", "1001_3"),
    ("(2,1)", "1,2"),
    ("(0,1)", r"\{0,1\}"),
    (r"[2,\infty]", r"[2,\infty)"),
    ("|x|", "x"),
    (r"\sqrt{x^2}", "x"),
    (r"\max(x,0)", "x"),
    ("y=|x|", "y=x"),
    (r"2\cos 20^\circ", r"2\cos 20"),
    (r"\sin 2^\circ", r"\sin 2"),
    (r"x<2 \text{ and } x>5", r"x<2 \text{ or } x>5"),
    (r"\{x: x>2\}", r"\{x: x>3\}"),
    (r"(1,2]", "1<x<2"),
    ("x>3", r"(2,\infty)"),
    ("$f(x)=ax$, where $a$ is any integer", "0"),
]


@pytest.mark.parametrize(("found", "expected"), EQUAL + [(b, a) for a, b, _ in MIXED] + [(a, a) for a, _, _ in MIXED])
def test_right_answers(found, expected):
    assert is_correct(boxed(found), expected), grade(boxed(found), expected)


@pytest.mark.parametrize(("found", "expected"), DIFFERENT + [(c, a) for a, _, c in MIXED])
def test_wrong_answers(found, expected):
    assert not is_correct(boxed(found), expected), grade(boxed(found), expected)


@pytest.mark.parametrize(
    "universal", [r"\infty", r"\frac00", "2=3", "x=x", r"\{\}", "0=0", "", "?", r"\text{}", "nan"]
)
def test_no_answer_fits_everything(universal):
    answers = [pair[1] for pair in EQUAL if isinstance(pair[1], str)] + [row[0] for row in MIXED]
    answers = [answer for answer in answers if answer != universal]
    assert not [answer for answer in answers if is_correct(boxed(universal), answer)]


def test_the_limit_is_that_of_an_answer_and_not_of_an_element():
    """Several hard elements, and several accepted answers; what needs no algebra is tried first."""
    symbolic.forget()
    hard = r"(x+y+z)^{34}"
    for completion, answer in (
        (r"\{(x+y+z)^{34},(x+y+w)^{34}\}", r"\{\sqrt{2}+m,\sqrt{3}+n\}"),
        (hard, [rf"\sqrt{{{n}}}+x+y+z" for n in (2, 3, 5, 7)]),
    ):
        started = time.monotonic()
        assert not is_correct(boxed(completion), answer)
        assert time.monotonic() - started < LONGEST_S
    assert grade(boxed(r"\sin(10^{10^{8}})"), [r"\sqrt{2}+1", r"\sin(10^{10^{8}})"]).how == "text"


def test_how_it_was_found_out():
    how = {answer: grade(boxed(found), answer).how for found, answer in EQUAL if isinstance(answer, str)}
    assert how["42"] == "number" and how["3,2"] == "list" and how[r"\text{Monday}"] == "text"
    assert how[r"2\sqrt{2}"] == "equal"
    assert grade("42", "42") == (False, None, "no answer")
    assert grade(boxed(r"\sqrt{3}"), r"\sqrt{2}").how == "different"
    assert grade(boxed(r"\frac{"), r"\sqrt{2}").how in ("no answer", "unparsed")


# ---- what a policy may write --------------------------------------------------------------------

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
    """None takes longer than the limit and a second, raises, or executes; the next answer is graded as ever."""
    monkeypatch.chdir(tmp_path)
    is_correct(boxed(r"\sqrt{8}"), r"2\sqrt{2}")  # the children are up
    slow = 0
    for text in HOSTILE + INJECTIONS:
        for completion in (boxed(text), text):
            started = time.monotonic()
            verdict = grade(completion, "16")
            seconds = time.monotonic() - started
            assert not verdict.correct and seconds < LONGEST_S, (text[:80], verdict.how, seconds)
            slow += seconds > 1
    assert slow <= 6  # and most are refused at sight
    for text in INJECTIONS:  # straight into the algebra, past the guard
        symbolic.workers().compare(r"\sqrt{2}", text, symbolic.LIMIT_S)
        symbolic.workers().compare(r"\begin{pmatrix}1&2\end{pmatrix}", text, symbolic.LIMIT_S)
    assert list(tmp_path.iterdir()) == []
    assert is_correct(boxed(r"\sqrt{8}"), r"2\sqrt{2}")


def test_a_child_that_hangs_or_dies_is_replaced_and_its_memory_is_bounded():
    children = symbolic.Workers()
    try:
        assert children.compare("1", "2", 3.0) == "different"
        stuck = children.at_work.process
        started = time.monotonic()
        assert children.compare("1", r"\sin(10^{10^{10}})", 1.0) == "timeout"
        assert time.monotonic() - started < 2
        assert stuck.poll() is not None and children.at_work.process is not stuck
        assert children.compare(r"2\sqrt{2}", r"\sqrt{8}", 3.0) == "equal"
        os.kill(children.at_work.process.pid, 9)
        children.at_work.process.wait()
        assert children.compare("1", "1", 3.0) == "died"
        assert children.compare("1", "1", 3.0) == "equal"
        status = Path(f"/proc/{children.at_work.process.pid}/limits").read_text()
        assert f"{3 * 2**29}" in next(line for line in status.splitlines() if line.startswith("Max address space"))
    finally:
        children.at_work.kill()
        children.waiting.kill()


def test_memory_beyond_the_bound_is_refused():
    script = "from nested_reft import symbolic_worker as w; w.bound_memory(); bytearray({})"
    for size, works in ((2**28, True), (3 * 2**29, False)):
        told = subprocess.run([sys.executable, "-c", script.format(size)], capture_output=True, text=True)
        assert (told.returncode == 0) == works and ("MemoryError" in told.stderr) != works


def test_children_end_with_their_parent_even_in_the_middle_of_algebra():
    script = (
        "import threading, time\n"
        "from nested_reft import symbolic\n"
        "workers = symbolic.workers()\n"
        "workers.compare('1', '1', 3.0)\n"
        "print(workers.at_work.process.pid, workers.waiting.process.pid, flush=True)\n"
        "threading.Thread(target=workers.compare, args=('1', r'\\sin(10^{10^{10}})', 60.0), daemon=True).start()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(1.0)
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

    symbolic.forget()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    # a process that was forked has the parent's pipes, and must not use them
    script = (
        "import os, sys\n"
        "from nested_reft.grading import is_correct\n"
        "from nested_reft import symbolic\n"
        "right = lambda: is_correct(r'\\boxed{\\sqrt{8}}', r'2\\sqrt{2}')\n"
        "wrong = lambda: is_correct(r'\\boxed{\\sqrt{7}}', r'2\\sqrt{2}')\n"
        "check = lambda: right() and not wrong()\n"
        "assert check()\n"
        "pid = os.fork()\n"
        "symbolic.forget()\n"
        "good = all(check() for _ in range(20))\n"
        "if pid == 0: os._exit(0 if good else 1)\n"
        "sys.exit(0 if good and os.waitpid(pid, 0)[1] == 0 else 1)\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60).returncode == 0


PIECES = st.sampled_from(
    [
        *(r"\boxed{", "}", "{", r"\frac", r"\sqrt", "(", ")", "[", "]", ",", "=", "^", "_", "\\", "$", "%", r"\text{"),
        *(
            "1",
            "2.5",
            "x",
            r"\pm",
            r"\cup",
            r"\begin{pmatrix}",
            r"\end{pmatrix}",
            r"\\",
            "&",
            "e",
            "|",
            "!",
            " ",
            "\n",
        ),
        *(r"\infty", "</think>", "½", ":", "'", r"\approx", r"\in "),
    ]
)
COMPLETIONS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))


@settings(max_examples=10_000, deadline=None)
@given(COMPLETIONS, st.sampled_from(["16", r"\frac{1}{2}", "(1,2)", "x=3", r"\text{no}"]))
def test_no_completion_raises(completion, expected):
    """Everything but the algebra, which runs elsewhere: its answer to whatever reaches it is `refused` here."""
    asked = symbolic.compare
    try:
        symbolic.compare = lambda *_: "refused"
        for text in (completion, f"\\boxed{{{completion}}}"):
            assert grade(text, expected).correct in (True, False)
            compare(text, expected, time.monotonic() + 3)
    finally:
        symbolic.compare = asked


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_completion_raises_in_the_algebra(text):
    assert symbolic.workers().compare(r"\sqrt{2}", text, symbolic.LIMIT_S) != "died"


# ---- the reward and the command -----------------------------------------------------------------


def test_the_reward_is_an_ordinary_one_of_trl():
    logged = {}
    completions = [boxed("4"), boxed(r"\sin(10^{10^{9}})"), "4", boxed("5")]
    symbolic.forget()
    rewards = correctness(
        completions=completions, answer=["4"] * 4, prompts=["?"] * 4, log_metric=logged.__setitem__, completion_ids=[]
    )
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    assert logged == {"grading/timeouts": 1.0}
    messages = [[{"role": "assistant", "content": boxed("4")}]]
    assert correctness(completions=messages, answer=["4"]) == [1.0]


def test_the_command_grades_files_and_streams(tmp_path):
    rows = [
        {"completion": boxed("4"), "answer": "4", "id": 7},
        {"completion": "four", "answer": ["3", "4"]},
        {"completion": boxed("142"), "answer": 142.0},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = run("nested-reft", "grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert told.returncode == 0 and told.stdout == "", told.stderr
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["correct"], row["extracted"], row["how"]) for row in graded] == [
        (True, "4", "number"),
        (False, None, "no answer"),
        (True, "142", "number"),
    ]
    assert graded[0]["id"] == 7 and all(row["seconds"] >= 0 for row in graded)
    command = [sys.executable, "-m", "nested_reft", "grade", "-"]
    piped = subprocess.run(command, input=(tmp_path / "in.jsonl").read_text(), capture_output=True, text=True)
    assert [json.loads(line)["correct"] for line in piped.stdout.splitlines()] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"completion": "x", "answer": "1"}\n{"completion', "line 2 is not JSON"),
        ('{"answer": "1"}\n', "line 1 has no text `completion`"),
        ('{"completion": "x", "answer": null}\n', "line 1 has `answer` None; give a text, a number or a list"),
        ('{"completion": "x", "answer": []}\n', "line 1 has `answer` []"),
        ("[1]\n", "line 1 has no text `completion`"),
    ],
)
def test_mistakes_are_one_sentence(content, sentence, tmp_path):
    (tmp_path / "in.jsonl").write_text(content)
    told = run("nested-reft", "grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert told.returncode == 2 and sentence in told.stderr and "Traceback" not in told.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert run("nested-reft", "grade", str(tmp_path / "none.jsonl")).returncode == 2


# ---- real answers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gold():
    """Return benchmark -> the lists of accepted answers."""
    import datasets

    names = ["aime", "amc", "math", "minerva", "olympiad_bench"]
    loaded = {name: datasets.load_from_disk(str(DATA / "math-eval" / name))["answer"] for name in names}
    return {name: [row if isinstance(row, list) else [row] for row in rows] for name, rows in loaded.items()}


@needs_data
def test_every_gold_answer_is_right_against_itself(gold):
    rows = [
        (f"\\boxed{{{answer}}}", answers) for of_one in gold.values() for answers in of_one for answer in answers[:1]
    ]
    assert len(rows) == 1560
    assert [row for row in rows if not is_correct(*row)] == []


def value_of(answer):
    """Return the number that an answer is, also as `x = 5` or in a base, or None."""
    from nested_reft.grading.normalize import clean, in_base, name_and_value, split_unit, to_number

    text = split_unit(clean(str(answer)))[0]
    text = in_base(text)[0] if in_base(text) else name_and_value(text)[1]
    number = to_number(text)
    return number and number.value


def numeric(gold):
    """Return pairs (answer, accepted answers) of one benchmark where another row's answer is a number of its own."""
    for of_one in gold.values():
        numbers = {}
        for answer in (str(answer) for answers in of_one for answer in answers):
            if value_of(answer) is not None:
                numbers.setdefault(value_of(answer), answer)
        for answers in of_one:
            own = {value_of(answer) for answer in answers} - {None}
            if any("%" in str(answer) for answer in answers):
                own |= {value / 100 for value in own} | {value * 100 for value in own}
            yield from ((other, answers) for value, other in numbers.items() if value not in own and "%" not in other)


def is_numeric(answers):
    return all(value_of(answer) is not None for answer in answers)


@needs_data
def test_gold_answers_are_wrong_against_the_numbers_of_other_rows(gold):
    """Numbers against all other numbers; other answers, which take the algebra, against a sample of them."""
    pairs = list(numeric(gold))
    numbers = [pair for pair in pairs if is_numeric(pair[1])]
    others = [pair for pair in pairs if not is_numeric(pair[1])]
    for answer, accepted in numbers + random.Random(0).sample(others, 1_000):
        assert not is_correct(f"\\boxed{{{answer}}}", accepted), (answer, accepted)


@needs_data
@pytest.mark.slow
def test_more_gold_answers_are_wrong_against_the_numbers_of_other_rows(gold):
    others = [pair for pair in numeric(gold) if not is_numeric(pair[1])]
    for answer, accepted in random.Random(1).sample(others, 5_000):
        assert not is_correct(f"\\boxed{{{answer}}}", accepted), (answer, accepted)


@needs_data
@pytest.mark.parametrize(
    ("name", "share"), [("roundtrip.jsonl", 0.999), ("cases.jsonl", 0.96), ("hostile.jsonl", 1.0)]
)
def test_cases_of_other_graders(name, share):
    rows = [json.loads(line) for line in (DATA / "grading" / name).read_text().splitlines()]
    if name == "cases.jsonl":
        rows = [row for row in rows if row["contested"] is None and row["gold_answer"] and row["pred_answer"]]
        verdicts = [
            is_correct(f"\\boxed{{{row['pred_answer']}}}", row["gold_answer"]) == row["expected_ours"] for row in rows
        ]
    elif name == "roundtrip.jsonl":
        verdicts = [is_correct(row["pred"], row["gold"]) == row["expected"] for row in rows]
    else:
        rows = [row for row in rows if row["must_be_wrong"]]
        verdicts = [not is_correct(row["pred"], row["gold"]) for row in rows]
    print(name, sum(verdicts), "of", len(rows))
    assert sum(verdicts) / len(rows) >= share
