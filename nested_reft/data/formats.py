"""The native formats of training sets and benchmarks: MATH, GSM8K, SVAMP, mwp_ReFT."""

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from nested_reft.data.sources import Row

# The columns by which a training set is recognised. Benchmarks need no solution.
MATH = ("problem", "solution", "answer")
GSM8K = ("question", "answer")
SVAMP = ("Body", "Question", "Equation", "Answer")
MWP_REFT = ("question", "answer_cot", "answer_value")

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
ANSWER_SENTENCE = re.compile(r"\s*(Therefore, )?the answer is:? <[^<>]*>\.?\s*$", re.IGNORECASE)
OPEN_CONDITION = re.compile(r"\b(if|when)\b[^.?!]*$", re.IGNORECASE)

OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def text_of(row: Row, column: str) -> str:
    """Return the text of a column; raise ValueError for anything else, and for empty text."""
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise ValueError(f"has {text!r:.60} as `{column}`, which is no text; correct it")
    if not text.strip():
        raise ValueError(f"has an empty `{column}`; fill it in or remove the row")
    return text


def answer_of(row: Row, column: str) -> str:
    """Return an answer, text or number, as text: `142.0` is `142`, and `$x$` is `x`.

    Raises:
        ValueError: it is empty, or neither text nor a number.
    """
    value = row[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = "" if value != value else str(value)  # a missing number is read as NaN
    text = text_of({column: value}, column).strip()
    return re.sub(r"^\$([^$]*[^$\\])\$$", r"\1", text)


def number_of(row: Row, column: str) -> str:
    """Return an answer that is a number, without the `.0` of an integer; raise ValueError if it is none."""
    text = answer_of(row, column)
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"has {text!r:.60} as `{column}`, which is no number; correct it") from None
    return re.sub(r"\.0*$", "", text)


def shown(value: Fraction) -> str:
    """Return a number as people write it: an integer, a decimal if it is short, or a fraction."""
    if value.denominator == 1 or 10**6 % value.denominator:
        return str(value)
    return format(Decimal(value.numerator) / value.denominator, "f")


def operand(value: Fraction) -> str:
    """Return a number as it stands beside an operator: in parentheses if it has a sign or is a fraction."""
    text = shown(value)
    return text if re.fullmatch(r"[\d.]+", text) else f"({text})"


def solve(equation: str) -> tuple[str, Fraction]:
    """Return an expression such as `( ( 8.0 + 2.0 ) * 3.0 )` step by step, `8 + 2 = 10. 10 * 3 = 30.`, and its value.

    Raises:
        ValueError: it is more than numbers, parentheses and the four operations, or divides by zero.
    """
    steps = []

    def value_of(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Fraction(str(number))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -value_of(inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                sign, apply = OPERATORS[type(op)]
                first, second = value_of(left), value_of(right)
                result = apply(first, second)
                steps.append(f"{operand(first)} {sign} {operand(second)} = {shown(result)}.")
                return result
        raise ValueError

    try:
        value = value_of(ast.parse(equation.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        raise ValueError(f"has the equation {equation!r:.60}, which cannot be computed; correct it") from None
    return " ".join(steps), value


def training_row(row: Row) -> Row:
    r"""Return `problem`, `solution` and `answer` of a row of MATH (and ours), GSM8K, SVAMP or mwp_ReFT.

    GSM8K's solutions lose their calculator marks `<<a=b>>` and the last line `#### answer`, mwp_ReFT's
    the sentence `the answer is <answer>`. SVAMP has an equation in place of a solution, and its steps
    become one; where they lead to another answer, the row also has a `flaw`. The box comes later.

    Raises:
        ValueError: a column is missing, empty or of a wrong type.
    """
    if row.keys() >= set(MATH):
        return {
            "problem": text_of(row, "problem"),
            "solution": text_of(row, "solution"),
            "answer": answer_of(row, "answer"),
        }
    if row.keys() >= set(MWP_REFT):
        return {
            "problem": text_of(row, "question"),
            "solution": ANSWER_SENTENCE.sub("", text_of(row, "answer_cot")),
            "answer": number_of(row, "answer_value"),
        }
    if row.keys() >= set(SVAMP):
        body, answer = text_of(row, "Body").strip(), number_of(row, "Answer")
        link = "" if body.endswith((".", "?", "!", ",")) else "," if OPEN_CONDITION.search(body) else "."
        steps, value = solve(text_of(row, "Equation"))
        problem = f"{body}{link} {text_of(row, 'Question').strip()}"
        flaw = None if value == Fraction(answer) else f"its equation gives {shown(value)}, and not {answer}"
        return {"problem": problem, "solution": steps, "answer": answer, "flaw": flaw}
    if row.keys() >= set(GSM8K):
        solution, mark, answer = text_of(row, "answer").rpartition("####")
        if not mark:
            raise ValueError("has an `answer` without the last line `#### value` of GSM8K; add it")
        return {
            "problem": text_of(row, "question"),
            "solution": CALCULATOR_MARK.sub("", text_of({"answer": solution}, "answer")),
            "answer": answer_of({"answer": answer.replace(",", "")}, "answer"),
        }
    formats = {"MATH; a benchmark needs no solution": MATH, "GSM8K": GSM8K, "SVAMP": SVAMP, "mwp_ReFT": MWP_REFT}
    wanted = " or ".join(f"{', '.join(columns)} ({name})" for name, columns in formats.items())
    raise ValueError(f"has the columns {', '.join(row)}, but needs {wanted}; rename or add what is missing")


def benchmark_row(row: Row) -> Row:
    """Return `problem` and `answer`, a list of texts of which any is right, of a row of a benchmark.

    That is the protocol of understand-r1-zero, whose Minerva and Olympiad have lists and whose AMC has
    floats. A training set in another format than MATH's serves as a benchmark too.

    Raises:
        ValueError: a column is missing, empty or of a wrong type.
    """
    if row.keys() >= {"problem", "answer"}:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        accepted = [answer_of({"answer": answer}, "answer") for answer in answers or [None]]
        return {"problem": text_of(row, "problem"), "answer": accepted}
    read = training_row(row)
    return {"problem": read["problem"], "answer": [read["answer"]]}
