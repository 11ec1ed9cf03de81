"""Grading a completion: the answer in its last box against the expected answer."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from nested_reft.errors import UserError
from nested_reft.grading import algebra
from nested_reft.grading.compare import compare
from nested_reft.grading.extract import extract_answer


class Grade(NamedTuple):
    """The judgement on a completion: whether it is correct, and how this was determined."""

    correct: bool
    extracted: str | None
    # `no answer`, `text`, `number`, `list`, or the result of the algebra: `equal`, `different`, `unparsed`, `refused`,
    # `timeout` or `died`
    how: str


def grade(completion: str, answer: str | float | list[str]) -> Grade:
    """Return the grade of a completion: its last boxed answer against the expected answer, or any of a list.

    Grading takes three seconds at most, and one more where a child process has to be replaced; threads that
    grade at the same time wait for each other's algebra. No completion raises an error or is executed.
    """
    extracted = extract_answer(completion)
    if extracted is None:
        return Grade(False, None, "no answer")
    accepted = [str(one) for one in (answer if isinstance(answer, list) else [answer])]
    # The rules that need no algebra are tried on every accepted answer first, because the algebra takes longer.
    how, undecided = "text", []
    for one in accepted:
        same, how = compare(extracted, one, deadline=None)
        if same:
            return Grade(True, extracted, how)
        if how == "undecided":
            undecided.append(one)
    deadline = time.monotonic() + algebra.LIMIT_S
    for one in undecided:
        same, how = compare(extracted, one, deadline)
        if same or how == "timeout":
            return Grade(same, extracted, how)
    return Grade(False, extracted, how)


def is_correct(completion: str, answer: str | float | list[str]) -> bool:
    """Whether the completion's last boxed answer equals the expected answer, or any of a list."""
    return grade(completion, answer).correct


def read_completions(text: str, name: str) -> list[dict[str, Any]]:
    """Return rows with `completion` and `answer` from JSON lines.

    Args:
        text: the JSON lines.
        name: the name of their source in an error.

    Raises:
        UserError: a line is not JSON, or one of its fields is missing or of another type.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}: line {number} is not JSON ({error.msg}); correct it") from None
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise UserError(f"{name}: line {number} has no text `completion`; give it one")
        answer = row.get("answer")
        many = isinstance(answer, list) and answer and all(isinstance(one, str | int | float) for one in answer)
        if isinstance(answer, bool) or not (many or isinstance(answer, str | int | float)):
            raise UserError(f"{name}: line {number} has `answer` {answer!r}; give a text, a number or a list of them")
        rows.append(row)
    if not rows:
        raise UserError(f"{name}: has no rows; give JSON lines with `completion` and `answer`")
    return rows


def grade_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each row with `correct`, `extracted`, `how` and `seconds`; a terminal shows the progress."""
    for row in tqdm(rows, unit="answer", disable=not sys.stderr.isatty()):
        started = time.perf_counter()
        judgement = grade(row["completion"], row["answer"])
        yield row | judgement._asdict() | {"seconds": round(time.perf_counter() - started, 6)}
