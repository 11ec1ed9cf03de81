r"""Answer extraction and verification: the reward in training and the score in evaluation.

An answer is what the last `\boxed{...}` holds. Plain Python decides whether it equals the expected one
where both are numbers, words, or lists of these (`answers.py`), exactly and at once; only what is left
goes to computer algebra, in processes that can be killed (`symbolic.py`). An answer that the algebra
cannot read, refuses, or does not finish in three seconds is wrong, and counted as such.

What counts as equal, where there is a choice:

- Only the last box counts, of the text after a last `</think>`; when it is not closed there is no answer.
- Integers and fractions are equal exactly, reduced or not; a decimal within 1e-6 of its size.
- `28%` equals `28` and `0.28`. A number without a base equals the same digits in any: the question tells it.
- Units and currencies are dropped on both sides and not compared; a decimal comma is not a decimal point.
- An inequality equals its interval. `i` is the imaginary unit where that makes two answers equal.
- Lists without brackets, and sets, are unordered, and an element repeated is an element more; tuples,
  intervals and matrices are ordered, and the kind of their brackets matters.
- `x = 5` equals `5`, but not `y = 5`. `a = b = 5` and `\pi \approx 3.14` are their last values.
- Words of three letters and more are compared without case. A letter from A to J may be a choice: `(C)`.
- Of several accepted answers any one is right.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from nested_reft.config.sections import ConfigError
from nested_reft.grading import algebra as symbolic
from nested_reft.grading.normalize import (
    DEEPEST,
    LONGEST_ANSWER,
    Several,
    clean,
    deepest,
    in_base,
    name_and_value,
    same_number,
    to_choice,
    to_interval,
    to_number,
    to_several,
    to_words,
    without_approximation,
    without_membership,
    without_units,
)

BOX = "\\boxed{"
RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![a-z])")
DEGREE = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
BOX_ESCAPE_OR_BRACE = re.compile(r"\\boxed\s*\{|(?<!\\)\\[{}]|[{}]")


class Verdict(NamedTuple):
    """Whether a completion is right, and how that was found out."""

    correct: bool
    extracted: str | None
    # `no answer`, `text`, `number`, `list`, or what the algebra said: `equal`, `different`, `unparsed`, `refused`,
    # `timeout` or `died`
    how: str


def boxes(text: str) -> tuple[list[tuple[int, str]], bool]:
    r"""Return (end, content) of every closed `\boxed{...}`, outermost only, and whether none is left open.

    An escaped brace opens and closes nothing, unless a box stays open for it.
    """
    found, closed = matched(text, escapes=True)
    return (found, closed) if closed else matched(text, escapes=False)


def matched(text: str, escapes: bool) -> tuple[list[tuple[int, str]], bool]:
    """Return what `boxes` does, with or without a meaning of escapes."""
    found: list[tuple[int, str]] = []
    depth = start = 0
    for match in (BOX_ESCAPE_OR_BRACE if escapes else BOX_OR_BRACE).finditer(text):
        if match[0] in ("\\{", "\\}"):
            continue
        if depth == 0:
            if match[0][0] == "\\":
                depth, start = 1, match.end()
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                found.append((match.end(), text[start : match.start()]))
        else:
            depth += 1
    return found, depth == 0


def extract_answer(completion: str) -> str | None:
    """Return the content of the last box, or None if there is none or if it is not closed."""
    found, closed = boxes(completion.rpartition("</think>")[2])
    if not found or not closed:
        return None
    content = found[-1][1].strip()
    inner = boxes(content)[0] if BOX in content else []  # a box in a box
    return inner[-1][1].strip() if inner else content


def until_first_answer(completion: str) -> str:
    """Return the text up to the first closed box after a thought: where a fixed-length completion ends by nature.

    With the end token banned the model has to go on after its answer; what it then writes is noise,
    and no reward may come from it.
    """
    thought = completion.find("</think>")
    found, _ = boxes(completion[max(0, thought) :])
    return completion[: max(0, thought) + found[0][0]] if found else completion


def compare(found: str, expected: str, deadline: float | None) -> tuple[bool, str]:
    """Return whether two answers, without their boxes, are the same, and how that was found out.

    Without a deadline the algebra is left out, and what only it could decide is `undecided`.
    """
    if max(len(found), len(expected)) > LONGEST_ANSWER or max(deepest(found), deepest(expected)) > DEEPEST:
        return found.strip() == expected.strip(), "text"
    found, expected = without_membership(clean(found)), without_membership(clean(expected))
    if not found:
        return False, "text"
    choice = to_choice(expected)
    if choice is not None and to_choice(found) == choice:
        return True, "text"
    found, expected = without_units(without_approximation(found), without_approximation(expected))
    numbers = to_number(found), to_number(expected)
    if numbers[0] is not None and numbers[1] is not None:
        return same_number(numbers[0], numbers[1]), "number"
    if to_words(found) == to_words(expected):
        return True, "text"
    bases = in_base(found), in_base(expected)
    if bases[0] is not None and bases[1] is not None:
        return bases[0] == bases[1], "number"
    if bases[0] is not None or bases[1] is not None:  # the question told the base
        digits = [base[0] if base else text.upper() for base, text in zip(bases, (found, expected), strict=True)]
        return digits[0] == digits[1], "number"

    several = to_several(found), to_several(expected)
    intervals = to_interval(found), to_interval(expected)
    if intervals[0] and several[1] is not None and several[1].kind not in ("", "{}", "and", "or"):
        return compare(intervals[0], expected, deadline)
    if intervals[1] and several[0] is not None and several[0].kind not in ("", "{}", "and", "or"):
        return compare(found, intervals[1], deadline)
    (name, value), (expected_name, expected_value) = name_and_value(found), name_and_value(expected)
    # the other side must not be a relation of its own, as `y = 2x` is against `2x - y = 0`
    one_sided = (name and not RELATION.search(expected)) or (expected_name and not RELATION.search(found))
    if (name and to_words(value) == to_words(expected)) or (
        expected_name and to_words(expected_value) == to_words(found)
    ):
        return True, "text"
    of_names = one_sided or (name and to_words(name) == to_words(expected_name))
    if of_names and not (several[0] and several[1] and several[0].kind in ("", "and", "or")):
        return compare(value, expected_value, deadline)
    if several[0] is not None and several[1] is not None:
        if several[0].kind == several[1].kind or {several[0].kind, several[1].kind} == {"", "{}"}:
            return compare_several(several[0], several[1], deadline)
        if "matrix" not in (several[0].kind, several[1].kind):
            return False, "list"
    elif (several[0] or several[1] or Several("()", [])).kind == "":
        return False, "list"

    if deadline is None:
        return False, "undecided"
    left = deadline - time.monotonic()
    if left <= 0:
        return False, "timeout"
    how = symbolic.compare(for_algebra(expected), for_algebra(found), left)
    return how == "equal", how


def for_algebra(text: str) -> str:
    """Return a cleaned answer as the parser reads it: rows of matrices, and degrees as parts of pi."""
    return DEGREE.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text.replace("\\cr", "\\\\"))


def compare_several(found: Several, expected: Several, deadline: float | None) -> tuple[bool, str]:
    """Return whether the elements are the same, in order or as a multiset."""
    if len(found.elements) != len(expected.elements):
        return False, "list"
    left, undecided = list(found.elements), False
    for element in expected.elements:
        candidates = left[:1] if expected.ordered else left
        for position, candidate in enumerate(candidates):
            same, how = compare(candidate, element, deadline)
            undecided |= how == "undecided"
            if how in ("timeout", "died"):
                return False, how
            if same:
                del left[position]
                break
        else:
            return False, "undecided" if undecided else "list"
    return True, "list"


def grade(completion: str, answer: str | float | list[str]) -> Verdict:
    """Return the verdict on a completion's last boxed answer against the expected answer, or any of a list.

    Takes three seconds at most, and one more where children have to be replaced; where threads ask at
    once they wait for each other. Never raises for what a model wrote, and executes none of it.
    """
    extracted = extract_answer(completion)
    if extracted is None:
        return Verdict(False, None, "no answer")
    accepted = [str(one) for one in (answer if isinstance(answer, list) else [answer])]
    how, undecided = "text", []
    for one in accepted:
        same, how = compare(extracted, one, None)
        if same:
            return Verdict(True, extracted, how)
        if how == "undecided":
            undecided.append(one)
    deadline = time.monotonic() + symbolic.LIMIT_S
    for one in undecided:
        same, how = compare(extracted, one, deadline)
        if same or how == "timeout":
            return Verdict(same, extracted, how)
    return Verdict(False, extracted, how)


def is_correct(completion: str, answer: str | float | list[str]) -> bool:
    """Whether the completion's last boxed answer equals the expected answer, or any of a list."""
    return grade(completion, answer).correct


Completion = str | list[dict[str, str]]


def correctness(
    completions: list[Completion],
    answer: list[str],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """Reward 1 for a right answer and 0 for a wrong or missing one: an ordinary TRL reward function.

    Args:
        completions: what the model wrote, as text or as messages.
        answer: the column of expected answers.
        log_metric: TRL's; gets `grading/timeouts`, how many answers were wrong for taking too long.
        **kwargs: the other columns, and what else TRL passes.
    """
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    verdicts = [grade(text, expected) for text, expected in zip(texts, answer, strict=True)]
    if log_metric is not None:
        log_metric("grading/timeouts", float(sum(verdict.how in ("timeout", "died") for verdict in verdicts)))
    return [float(verdict.correct) for verdict in verdicts]


def first_answer_correctness(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Reward the first answer of completions of fixed length: the rest is what the ban on the end token made."""
    return correctness([until_first_answer(completion) for completion in completions], answer, **kwargs)


def read_completions(text: str, name: str) -> list[dict[str, Any]]:
    """Return rows with `completion` and `answer` from JSON lines.

    Raises:
        ConfigError: naming the first line that is not JSON, or whose fields are missing or of another type.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}: line {number} is not JSON ({error.msg}); correct it") from None
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise ConfigError(f"{name}: line {number} has no text `completion`; give it one")
        answer = row.get("answer")
        many = isinstance(answer, list) and answer and all(isinstance(one, str | int | float) for one in answer)
        if isinstance(answer, bool) or not (many or isinstance(answer, str | int | float)):
            raise ConfigError(
                f"{name}: line {number} has `answer` {answer!r}; give a text, a number or a list of them"
            )
        rows.append(row)
    return rows


def grade_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each row with `correct`, `extracted`, `how` and `seconds`; shows progress on a terminal."""
    for row in tqdm(rows, unit="answer", disable=not sys.stderr.isatty()):
        started = time.perf_counter()
        verdict = grade(row["completion"], row["answer"])
        yield row | verdict._asdict() | {"seconds": round(time.perf_counter() - started, 6)}
