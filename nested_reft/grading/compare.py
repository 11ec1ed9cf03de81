r"""How two answers are compared: the policy of the grader.

First, both answers are read (`read_pair`), without their boxes:

- Spellings are unified (`normalize.clean`): signs, spacing, LaTeX commands, `$` around the whole answer.
- `x \in (1, 2)` is read as `(1, 2)`, `\frac{1}{3} \approx 0.33` as its exact side, `r \approx 0.33` as `0.33`.
- Units and currencies are dropped on both sides and not compared. A decimal comma is not a decimal point.

Then the rules below, which are the functions in `RULES`, are tried in this order. A rule returns None where
it does not apply, and the first outcome decides:

1. `empty_answer`: an empty answer is wrong.
2. `same_choice`: a letter from A to J may be a choice, so `(C)` equals `C`.
3. `same_numbers`: integers and fractions are equal exactly, reduced or not; decimals to a relative 1e-6.
   `28%` equals `28` and `0.28`.
4. `same_words`: equal texts are equal answers. Words of three letters or more are compared without case.
5. `same_digits`: numbers in a base are equal if digits and base are. A number without a base equals the same
   digits in any base, because the question states the base.
6. `inequality_as_interval`: an inequality equals its interval.
7. `assignment_and_value`: `x = 5` equals `5`, and so does `x = 2 + 3 = 5`.
8. `assigned_values`: assignments to the same name are compared by their values; `x = 5` does not equal `y = 5`.
9. `same_elements`: lists without brackets, and sets, are unordered, and the number of repetitions of an element
   matters. Tuples, intervals and matrices are ordered.
10. `different_collections`: tuples, intervals and sets that differ in the kind of their brackets are different, and
    a list without brackets does not equal a single value.

Where no rule applies, computer algebra decides (`same_in_algebra`). An answer that it cannot parse, refuses, or does
not compare within the limit is wrong. `i` is the imaginary unit where this makes two answers equal.
"""

import re
import time
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from nested_reft.grading import algebra
from nested_reft.grading.normalize import (
    MAX_ANSWER_LENGTH,
    MAX_BRACKET_DEPTH,
    Collection,
    bracket_depth,
    clean,
    in_base,
    name_and_value,
    same_number,
    to_choice,
    to_collection,
    to_interval,
    to_number,
    to_words,
    without_approximation,
    without_membership,
    without_units,
)

RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![a-z])")
DEGREE = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")

# The kinds of lists without brackets.
LISTS = ("", "and", "or")


class Outcome(NamedTuple):
    """Whether two answers are the same, and how this was determined."""

    same: bool
    how: str  # `text`, `number`, `list`, a comparison of the algebra, or `undecided`: only the algebra could decide


class Reading:
    """An answer in its normal forms; all but the number are computed when a rule first asks for them."""

    def __init__(self, cleaned: str, text: str) -> None:
        self.cleaned = cleaned  # with its unit
        self.text = text
        self.number = to_number(text)  # at once, because almost every pair needs it

    @cached_property
    def words(self) -> str:
        """The answer without spaces, and without case where it is a word."""
        return to_words(self.text)

    @cached_property
    def digits_and_base(self) -> tuple[str, str] | None:
        """The digits and the base of `2516_8`."""
        return in_base(self.text)

    @cached_property
    def interval(self) -> str | None:
        """The interval of an inequality."""
        return to_interval(self.text)

    @cached_property
    def collection(self) -> Collection | None:
        """The elements of a list, tuple, interval, set, matrix or union."""
        return to_collection(self.text)

    @cached_property
    def assignment(self) -> tuple[str, str]:
        """The name and the value of `x = 5`; the name is empty if the answer is not an assignment."""
        return name_and_value(self.text)

    @property
    def name(self) -> str:
        """The name of an assignment, or empty."""
        return self.assignment[0]

    @property
    def value(self) -> str:
        """The value of an assignment, or the whole text."""
        return self.assignment[1]


def compare(found: str, expected: str, deadline: float | None) -> Outcome:
    """Compare two answers by the rules of this module.

    Args:
        found: the answer of a completion, without its box.
        expected: the expected answer, without a box.
        deadline: the time of `time.monotonic` at which the algebra ends. Without a deadline the algebra is
            left out, and what only it could decide is `undecided`.
    """
    if is_too_large(found) or is_too_large(expected):
        return Outcome(found.strip() == expected.strip(), "text")
    found_reading, expected_reading = read_pair(found, expected)
    for rule in RULES:
        outcome = rule(found_reading, expected_reading, deadline)
        if outcome is not None:
            return outcome
    return same_in_algebra(found_reading, expected_reading, deadline)


def is_too_large(answer: str) -> bool:
    """Whether an answer is so long or so deep in brackets that it is compared as text only."""
    return len(answer) > MAX_ANSWER_LENGTH or bracket_depth(answer) > MAX_BRACKET_DEPTH


def read_pair(found: str, expected: str) -> tuple[Reading, Reading]:
    """Return both answers cleaned; a unit is dropped with regard to the unit of the other side."""
    found, expected = without_membership(clean(found)), without_membership(clean(expected))
    texts = without_units(without_approximation(found), without_approximation(expected))
    return Reading(found, texts[0]), Reading(expected, texts[1])


def empty_answer(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Decide that an empty answer is wrong."""
    return None if found.cleaned else Outcome(False, "text")


def same_choice(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Decide that two answers with the same letter of a multiple choice are equal."""
    choice = to_choice(expected.cleaned)
    return Outcome(True, "text") if choice is not None and to_choice(found.cleaned) == choice else None


def same_numbers(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Compare two numbers by their values."""
    if found.number is None or expected.number is None:
        return None
    return Outcome(same_number(found.number, expected.number), "number")


def same_words(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Decide that equal texts are equal answers."""
    return Outcome(True, "text") if found.words == expected.words else None


def same_digits(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Compare numbers in a base by their digits, and by their bases if both have one."""
    one, other = found.digits_and_base, expected.digits_and_base
    if one is not None and other is not None:
        return Outcome(one == other, "number")
    if one is None and other is None:
        return None
    digits = one[0] if one else found.text.upper()
    expected_digits = other[0] if other else expected.text.upper()
    return Outcome(digits == expected_digits, "number")


def inequality_as_interval(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Compare an inequality as an interval, if the other side may be an interval."""
    if found.interval and may_be_interval(expected):
        return compare(found.interval, expected.text, deadline)
    if expected.interval and may_be_interval(found):
        return compare(found.text, expected.interval, deadline)
    return None


def may_be_interval(reading: Reading) -> bool:
    """Whether an answer is in brackets, or a union, so that it can be compared with an interval."""
    return reading.collection is not None and reading.collection.kind not in (*LISTS, "{}")


def assignment_and_value(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Decide that an assignment equals its value."""
    if found.name and to_words(found.value) == expected.words:
        return Outcome(True, "text")
    if expected.name and to_words(expected.value) == found.words:
        return Outcome(True, "text")
    return None


def assigned_values(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Compare assignments to one name, or an assignment and a value, by their values."""
    # The other side must not be a relation: `y = 2x` and `2x - y = 0` are compared as equations.
    is_one_sided = (found.name and not RELATION.search(expected.text)) or (
        expected.name and not RELATION.search(found.text)
    )
    if not is_one_sided and not (found.name and to_words(found.name) == to_words(expected.name)):
        return None
    if found.collection and expected.collection and found.collection.kind in LISTS:
        return None  # lists of assignments are compared element by element
    return compare(found.value, expected.value, deadline)


def same_elements(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Compare collections of the same kind by their elements, in order or as multisets."""
    one, other = found.collection, expected.collection
    if one is None or other is None or not (one.kind == other.kind or {one.kind, other.kind} == {"", "{}"}):
        return None
    if len(one.elements) != len(other.elements):
        return Outcome(False, "list")
    left, undecided = list(one.elements), False
    for element in other.elements:
        candidates = left[:1] if other.ordered else left
        for position, candidate in enumerate(candidates):
            same, how = compare(candidate, element, deadline)
            undecided |= how == "undecided"
            if how in ("timeout", "died"):
                return Outcome(False, how)
            if same:
                del left[position]
                break
        else:
            return Outcome(False, "undecided" if undecided else "list")
    return Outcome(True, "list")


def different_collections(found: Reading, expected: Reading, deadline: float | None) -> Outcome | None:
    """Decide that collections of different kinds differ, as do a list without brackets and a single value."""
    kinds = [reading.collection.kind for reading in (found, expected) if reading.collection is not None]
    # A matrix may equal a collection of another kind, a vector for instance: the algebra decides.
    is_different = "matrix" not in kinds if len(kinds) == 2 else kinds == [""]
    return Outcome(False, "list") if is_different else None


def same_in_algebra(found: Reading, expected: Reading, deadline: float | None) -> Outcome:
    """Let computer algebra compare the answers until the deadline."""
    if deadline is None:
        return Outcome(False, "undecided")
    limit_s = deadline - time.monotonic()
    if limit_s <= 0:
        return Outcome(False, "timeout")
    how = algebra.compare(for_algebra(expected.text), for_algebra(found.text), limit_s)
    return Outcome(how == "equal", how)


def for_algebra(text: str) -> str:
    """Return a cleaned answer as the parser reads it: rows of matrices, and degrees as parts of pi."""
    return DEGREE.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text.replace("\\cr", "\\\\"))


Rule = Callable[[Reading, Reading, float | None], Outcome | None]

RULES: tuple[Rule, ...] = (
    empty_answer,
    same_choice,
    same_numbers,
    same_words,
    same_digits,
    inequality_as_interval,
    assignment_and_value,
    assigned_values,
    same_elements,
    different_collections,
)
