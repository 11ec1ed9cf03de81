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

import re
import time

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

RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![a-z])")
DEGREE = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")


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
