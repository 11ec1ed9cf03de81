"""The formats of training sets and benchmarks: one entry of `FORMATS` each.

A parser raises ValueError for a row that it cannot read. The message continues "<file>: row <n>", as in
"train.jsonl: row 3 has an empty `answer`; fill it in or remove the row".
"""

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from nested_reft.data.sources import Row

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
ANSWER_SENTENCE = re.compile(r"\s*(Therefore, )?the answer is:? <[^<>]*>\.?\s*$", re.IGNORECASE)
OPEN_CONDITION = re.compile(r"\b(if|when)\b[^.?!]*$", re.IGNORECASE)

OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


class Format(NamedTuple):
    """A format of training sets: a row that has all of the columns is read by the parser."""

    columns: tuple[str, ...]
    parse: Callable[[Row], Row]  # returns `problem`, `solution` and `answer`; the box is added later


def training_row(row: Row) -> Row:
    """Return `problem`, `solution` and `answer` of a row in one of `FORMATS`.

    A row whose solution leads to another answer also has a `contradiction`, the reason as text.

    Raises:
        ValueError: the row has the columns of no format, or a column is empty or of a wrong type.
    """
    for columns, parse in FORMATS.values():
        if row.keys() >= set(columns):
            return parse(row)
    wanted = " or ".join(f"{', '.join(columns)} ({name})" for name, (columns, _) in FORMATS.items())
    raise ValueError(
        f"has the columns {', '.join(row)}, but needs {wanted}; rename or add what is missing "
        "(a benchmark needs no solution)"
    )


def benchmark_row(row: Row) -> Row:
    """Return `problem`, `answer`, a list of accepted texts, and perhaps `cluster` of a row of a benchmark.

    Benchmarks follow the protocol of understand-r1-zero, where Minerva and Olympiad have lists of answers and
    AMC has floats. A training set in one of `FORMATS` may be a benchmark too.

    Raises:
        ValueError: a column is missing, empty or of a wrong type.
    """
    cluster = {} if row.get("cluster") is None else {"cluster": answer_of(row, "cluster")}
    if row.keys() >= {"problem", "answer"}:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        accepted = [answer_of({"answer": answer}, "answer") for answer in answers or [None]]
        return {"problem": text_of(row, "problem"), "answer": accepted} | cluster
    read = training_row(row)
    return {"problem": read["problem"], "answer": [read["answer"]]} | cluster


# ---- parsers of rows -----------------------------------------------------------------------------


def parse_math(row: Row) -> Row:
    """Read a row of MATH, which is also the format of prepared training sets."""
    return {
        "problem": text_of(row, "problem"),
        "solution": text_of(row, "solution"),
        "answer": answer_of(row, "answer"),
    }


def parse_gsm8k(row: Row) -> Row:
    """Read a row of GSM8K; the solution loses its calculator marks `<<a=b>>` and the last line `#### answer`."""
    solution, mark, answer = text_of(row, "answer").rpartition("####")
    if not mark:
        raise ValueError("has an `answer` without the last line `#### value` of GSM8K; add it")
    return {
        "problem": text_of(row, "question"),
        "solution": CALCULATOR_MARK.sub("", text_of({"answer": solution}, "answer")),
        "answer": answer_of({"answer": answer.replace(",", "")}, "answer"),
    }


def parse_svamp(row: Row) -> Row:
    """Read a row of SVAMP; the steps of its equation become the solution."""
    body, answer = text_of(row, "Body").strip(), number_of(row, "Answer")
    link = "" if body.endswith((".", "?", "!", ",")) else "," if OPEN_CONDITION.search(body) else "."
    steps, value = solve(text_of(row, "Equation"))
    problem = f"{body}{link} {text_of(row, 'Question').strip()}"
    read = {"problem": problem, "solution": steps, "answer": answer}
    if value != Fraction(answer):
        read["contradiction"] = f"its equation gives {format_number(value)}, and not {answer}"
    return read


def parse_mwp_reft(row: Row) -> Row:
    """Read a row of mwp_ReFT; the solution loses the sentence `Therefore, the answer is <answer>.`."""
    return {
        "problem": text_of(row, "question"),
        "solution": ANSWER_SENTENCE.sub("", text_of(row, "answer_cot")),
        "answer": number_of(row, "answer_value"),
    }


# The first format whose columns a row has is used. A new format is one more entry.
FORMATS: dict[str, Format] = {
    "MATH": Format(("problem", "solution", "answer"), parse_math),
    "mwp_ReFT": Format(("question", "answer_cot", "answer_value"), parse_mwp_reft),
    "SVAMP": Format(("Body", "Question", "Equation", "Answer"), parse_svamp),
    "GSM8K": Format(("question", "answer"), parse_gsm8k),
}


# ---- values of columns ---------------------------------------------------------------------------


def text_of(row: Row, column: str) -> str:
    """Return the text of a column.

    Raises:
        ValueError: the column is empty or not text.
    """
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise ValueError(f"has {text!r:.60} as `{column}`, which is not text; correct it")
    if not text.strip():
        raise ValueError(f"has an empty `{column}`; fill it in or remove the row")
    return text


def answer_of(row: Row, column: str) -> str:
    """Return an answer, text or number, as text: `142.0` becomes `142`, and `$x$` becomes `x`.

    Raises:
        ValueError: the answer is empty, or neither text nor a number.
    """
    value = row[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = "" if value != value else str(value)  # a missing number is read as NaN
    text = text_of({column: value}, column).strip()
    return re.sub(r"^\$([^$]*[^$\\])\$$", r"\1", text)


def number_of(row: Row, column: str) -> str:
    """Return an answer that is a number, without the `.0` of an integer.

    Raises:
        ValueError: the answer is empty or not a number.
    """
    text = answer_of(row, column)
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"has {text!r:.60} as `{column}`, which is not a number; correct it") from None
    return re.sub(r"\.0*$", "", text)


# ---- equations of SVAMP --------------------------------------------------------------------------


def solve(equation: str) -> tuple[str, Fraction]:
    """Return steps and value of an expression: `( ( 8.0 + 2.0 ) * 3.0 )` has the steps `8 + 2 = 10. 10 * 3 = 30.`.

    Raises:
        ValueError: the expression has more than numbers, parentheses and the four operations, or divides by zero.
    """
    steps: list[str] = []
    try:
        value = value_of(ast.parse(equation.strip(), mode="eval").body, steps)
    except (SyntaxError, ValueError, ZeroDivisionError):
        raise ValueError(f"has the equation {equation!r:.60}, which cannot be computed; correct it") from None
    return " ".join(steps), value


def value_of(node: ast.expr, steps: list[str]) -> Fraction:
    """Return the value of a part of an equation, and append each operation in it to the steps."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -value_of(inner, steps)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            sign, apply = OPERATORS[type(op)]
            first, second = value_of(left, steps), value_of(right, steps)
            result = apply(first, second)
            steps.append(f"{format_operand(first)} {sign} {format_operand(second)} = {format_number(result)}.")
            return result
    raise ValueError


def format_number(value: Fraction) -> str:
    """Return a number as an integer, as a decimal of at most six places, or as a fraction."""
    if value.denominator == 1 or 10**6 % value.denominator:
        return str(value)
    return format(Decimal(value.numerator) / value.denominator, "f")


def format_operand(value: Fraction) -> str:
    """Return a number as an operand, in parentheses if it has a sign or is a fraction."""
    text = format_number(value)
    return text if re.fullmatch(r"[\d.]+", text) else f"({text})"
