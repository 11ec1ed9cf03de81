"""Rows of every format: their parsers, and the equations of SVAMP."""

import re
from fractions import Fraction

import pytest

from nested_reft.config.sections import BenchmarkSource
from nested_reft.data.formats import FORMATS, Format, benchmark_row, solve, training_row
from nested_reft.data.sources import parsed_rows
from tests.conftest import needs_data
from tests.data.rows import SVAMP_READ, SVAMP_ROW, math, prepared


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "How many?", "answer": "Two and two is <<2+2=4>>4, times 251\n#### 1,004"},
            {
                "problem": "How many?",
                "solution": r"Two and two is 4, times 251. The answer is \boxed{1004}.",
                "answer": "1004",
            },
        ),
        (SVAMP_ROW, SVAMP_READ),
        (
            SVAMP_ROW | {"ID": "chal-0", "Type": "Addition", "Answer": "30.0", "question_concat": "left alone"},
            SVAMP_READ,
        ),
        (
            {
                "item_id": "svamp_0",
                "question": "Ida has 8 pens and loses 6. How many are left ?",
                "answer_cot": "She has 8 - 6 = 2 pens.\n\nTherefore, the answer is <2>.",
                "answer_value": "2.0",
            },
            {
                "problem": "Ida has 8 pens and loses 6. How many are left ?",
                "solution": r"She has 8 - 6 = 2 pens. The answer is \boxed{2}.",
                "answer": "2",
            },
        ),
        (
            math("Halve $1$.", r"\frac{1}{2}", r"Half is $\boxed{\frac{1}{2}}$.")
            | {"subject": "Algebra", "level": 1, "unique_id": "train/algebra/0.json"},
            math("Halve $1$.", r"\frac{1}{2}", r"Half is $\boxed{\frac{1}{2}}$."),
        ),
    ],
    ids=["GSM8K", "SVAMP file", "SVAMP hub", "mwp_ReFT", "MATH"],
)
def test_native_formats(row, expected, tmp_path):
    kept, dropped, _ = prepared(tmp_path, [row])
    assert (kept, dropped) == ([expected], [])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("There are 8 pens", "There are 8 pens. How many?"),
        (" There are 8 pens. ", "There are 8 pens. How many?"),
        ("If it rains they stay. Now 8 are here", "If it rains they stay. Now 8 are here. How many?"),
        ("Some left. If 8 stayed", "Some left. If 8 stayed, How many?"),
    ],
)
def test_a_problem_of_svamp_is_its_body_and_its_question(body, problem):
    row = {"Body": body, "Question": "How many?", "Equation": "8.0", "Answer": 8.0}
    assert training_row(row)["problem"] == problem


@pytest.mark.parametrize(
    ("equation", "steps", "value"),
    [
        ("8.0", "", 8),
        ("( 8.0 - ( 1.5 + 2.0 ) )", "1.5 + 2 = 3.5. 8 - 3.5 = 4.5.", Fraction(9, 2)),
        ("( 3.0 * ( 10.0 / 3.0 ) )", "10 / 3 = 10/3. 3 * (10/3) = 10.", 10),
        ("2.0 - ( 1.0 - 4.0 )", "1 - 4 = -3. 2 - (-3) = 5.", 5),
        ("0.1 + 0.2", "0.1 + 0.2 = 0.3.", Fraction(3, 10)),
    ],
)
def test_an_equation_is_solved_step_by_step_and_exactly(equation, steps, value):
    assert solve(equation) == (steps, value)


@pytest.mark.parametrize("equation", ["", "8 -", "x + 1", "2 ** 9", "1 / ( 2 - 2 )", "True + 1", "abs(2)"])
def test_an_equation_is_never_more_than_arithmetic(equation):
    with pytest.raises(ValueError, match=r"has the equation .* which cannot be computed"):
        solve(equation)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (142.0, ["142"]),
        (0.5, ["0.5"]),
        (7, ["7"]),
        (["1.6\n"], ["1.6"]),
        (["x+1\n", "1+x"], ["x+1", "1+x"]),
        (["$(1,2)$"], ["(1,2)"]),
        (r"\$18.90", [r"\$18.90"]),
        ("$1$,$2$", ["$1$,$2$"]),
    ],
)
def test_gold_answers_are_a_list_of_texts(answer, accepted):
    assert benchmark_row({"problem": "p", "answer": answer}) == {"problem": "p", "answer": accepted}


def test_a_training_format_serves_as_a_benchmark():
    read = benchmark_row({"question": "How many?", "answer": "Four.\n#### 4"})
    assert read == {"problem": "How many?", "answer": ["4"]}


@pytest.mark.parametrize(("cluster", "read"), [("p. 12", {"cluster": "p. 12"}), (7, {"cluster": "7"}), (None, {})])
def test_a_problem_of_a_benchmark_may_have_a_cluster(cluster, read):
    row = {"problem": "p", "answer": "1", "cluster": cluster}
    assert benchmark_row(row) == {"problem": "p", "answer": ["1"]} | read
    gsm8k = {"question": "How many?", "answer": "Four.\n#### 4", "cluster": cluster}
    assert benchmark_row(gsm8k) == {"problem": "How many?", "answer": ["4"]} | read
    with pytest.raises(ValueError, match="has an empty `cluster`"):
        benchmark_row({"problem": "p", "answer": "1", "cluster": " "})


def test_a_new_format_is_one_entry(monkeypatch):
    def parse(row):
        return {"problem": row["ask"], "solution": "It is one.", "answer": row["reply"]}

    row = {"ask": "p", "reply": "1"}
    with pytest.raises(ValueError, match=r"has the columns ask, reply, but needs problem, solution, answer \(MATH\)"):
        training_row(row)
    monkeypatch.setitem(FORMATS, "mine", Format(("ask", "reply"), parse))
    assert training_row(row) == {"problem": "p", "solution": "It is one.", "answer": "1"}
    assert benchmark_row(row) == {"problem": "p", "answer": ["1"]}


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_row_is_refused_with_the_columns_of_every_format(name):
    with pytest.raises(ValueError, match=rf"{', '.join(FORMATS[name].columns)} \({name}\)"):
        training_row({"problem": "p"})


@pytest.mark.data
@needs_data
def test_real_training_sets_serve_as_benchmarks(real_mirror, monkeypatch):
    monkeypatch.setenv("NESTED_REFT_MIRROR", str(real_mirror))
    rows = parsed_rows(BenchmarkSource(path="openai/gsm8k"), benchmark_row)
    assert len(rows) == 1319
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", answer) for row in rows for answer in row["answer"])
