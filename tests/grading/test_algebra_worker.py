"""The symbolic comparison itself, called in this process."""

import subprocess
import sys

import pytest

from nested_reft.grading import algebra_worker


def test_memory_beyond_the_bound_is_refused():
    script = "from nested_reft.grading import algebra_worker as w; w.bound_memory(); bytearray({})"
    for size, works in ((2**28, True), (3 * 2**29, False)):
        finished = subprocess.run([sys.executable, "-c", script.format(size)], capture_output=True, text=True)
        assert (finished.returncode == 0) == works and ("MemoryError" in finished.stderr) != works


@pytest.mark.parametrize(
    ("expected", "found", "answer"),
    [
        (r"2\sqrt{2}", r"\sqrt{8}", "equal"),
        (r"2\sqrt{2}", r"\sqrt{7}", "different"),
        ("x^2+2x+1", "(x+1)^2", "equal"),
        ("x", r"\sqrt{x^2}", "different"),
        ("-i", r"\frac{1}{i}", "equal"),
        ("f'", "f", "different"),
        ("2x-y+1=0", "y=2x+1", "equal"),
        ("x<3", "3>x", "equal"),
        ("x<3", "x>3", "different"),
        ("x<3", "-x<-3", "different"),
        ("y=2x", "2x", "equal"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\\sqrt{4}\end{bmatrix}", "equal"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "different"),
        ("2", r"\begin{pmatrix}1&2\end{pmatrix}", "different"),
        (r"\{1,x\}", r"\{x,1\}", "equal"),
        (r"\frac{1}{0}", "1", "unparsed"),
    ],
)
def test_answers_are_compared_by_their_values(expected, found, answer):
    assert algebra_worker.compare(expected, found) == answer


def test_a_relation_is_not_compared_with_an_expression():
    assert algebra_worker.compare("x+y", "x<y") == "unparsed"
    assert algebra_worker.compare("2x=y+z", "2x") == "unparsed"


@pytest.mark.parametrize("text", [r"\frac{", "((", r"\begin{pmatrix}1"])
def test_the_parser_raises_on_broken_text(text):
    with pytest.raises(Exception):  # noqa: B017 -- its errors have no common class
        algebra_worker.compare("1", text)
