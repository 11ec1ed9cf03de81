"""Grading a completion: its extracted answer against the expected one."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from nested_reft.errors import UserError
from nested_reft.grading import algebra as symbolic
from nested_reft.grading.compare import compare
from nested_reft.grading.extract import extract_answer


class Grade(NamedTuple):
    """Whether a completion is right, and how that was found out."""

    correct: bool
    extracted: str | None
    # `no answer`, `text`, `number`, `list`, or what the algebra said: `equal`, `different`, `unparsed`, `refused`,
    # `timeout` or `died`
    how: str


def grade(completion: str, answer: str | float | list[str]) -> Grade:
    """Return the verdict on a completion's last boxed answer against the expected answer, or any of a list.

    Takes three seconds at most, and one more where children have to be replaced; where threads ask at
    once they wait for each other. Never raises for what a model wrote, and executes none of it.
    """
    extracted = extract_answer(completion)
    if extracted is None:
        return Grade(False, None, "no answer")
    accepted = [str(one) for one in (answer if isinstance(answer, list) else [answer])]
    how, undecided = "text", []
    for one in accepted:
        same, how = compare(extracted, one, None)
        if same:
            return Grade(True, extracted, how)
        if how == "undecided":
            undecided.append(one)
    deadline = time.monotonic() + symbolic.LIMIT_S
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

    Raises:
        UserError: naming the first line that is not JSON, or whose fields are missing or of another type.
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
    return rows


def grade_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each row with `correct`, `extracted`, `how` and `seconds`; shows progress on a terminal."""
    for row in tqdm(rows, unit="answer", disable=not sys.stderr.isatty()):
        started = time.perf_counter()
        verdict = grade(row["completion"], row["answer"])
        yield row | verdict._asdict() | {"seconds": round(time.perf_counter() - started, 6)}
