"""The policy: which answers are equal, and how this is determined."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_reft.bench.grading import MIXED
from nested_reft.grading import algebra, compare
from nested_reft.grading.extract import boxed
from nested_reft.grading.grade import grade, is_correct
from tests.grading.cases import EQUAL, EVERY_DIFFERENT, EVERY_EQUAL, PIECES


@pytest.mark.parametrize(("found", "expected"), EVERY_EQUAL)
def test_right_answers(found, expected):
    assert is_correct(boxed(found), expected), grade(boxed(found), expected)


@pytest.mark.parametrize(("found", "expected"), EVERY_DIFFERENT)
def test_wrong_answers(found, expected):
    assert not is_correct(boxed(found), expected), grade(boxed(found), expected)


@pytest.mark.parametrize(
    "universal", [r"\infty", r"\frac00", "2=3", "x=x", r"\{\}", "0=0", "", "?", r"\text{}", "nan"]
)
def test_no_answer_fits_everything(universal):
    answers = [pair[1] for pair in EQUAL if isinstance(pair[1], str)] + [row[0] for row in MIXED]
    answers = [answer for answer in answers if answer != universal]
    assert not [answer for answer in answers if is_correct(boxed(universal), answer)]


COMPLETIONS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))


@settings(max_examples=10_000, deadline=None)
@given(COMPLETIONS, st.sampled_from(["16", r"\frac{1}{2}", "(1,2)", "x=3", r"\text{no}"]))
def test_no_completion_raises(completion, expected):
    """Test all but the algebra, which runs in another process and here refuses every comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "compare", lambda *_: "refused")
        for text in (completion, boxed(completion)):
            assert grade(text, expected).correct in (True, False)
            compare.compare(text, expected, time.monotonic() + 3)


def test_the_policy_lists_the_rules_in_their_order():
    listed = re.findall(r"(?m)^\d+\. `(\w+)`:", compare.__doc__)
    assert listed == [rule.__name__ for rule in compare.RULES]


# For each rule, a pair of answers that it decides, and its outcome.
DECIDED = {
    "empty_answer": (r"\,", "0", (False, "text")),
    "same_choice": ("(C)", r"\text{C}", (True, "text")),
    "same_numbers": ("0.5", r"\frac12", (True, "number")),
    "same_words": ("monday", r"\text{Monday}", (True, "text")),
    "same_digits": ("2516", "2516_8", (True, "number")),
    "inequality_as_interval": ("1<x<2", "(1,2)", (True, "text")),
    "assignment_and_value": (r"x = \sqrt{2}", r"\sqrt2", (True, "text")),
    "assigned_values": ("x = 0.5", "1/2", (True, "number")),
    "same_elements": ("(2,1)", "(1,2)", (False, "list")),
    "different_collections": ("1,2", "(1,2)", (False, "list")),
}


@pytest.mark.parametrize("rule", compare.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_decides_what_no_earlier_one_does(rule):
    found, expected, outcome = DECIDED[rule.__name__]
    assert compare.compare(found, expected, None) == outcome
    readings = compare.read_pair(found, expected)
    applicable = [other for other in compare.RULES if other(*readings, None) is not None]
    assert applicable[0] is rule


def test_only_the_algebra_is_left_undecided_without_a_deadline():
    assert compare.compare(r"\sqrt{8}", r"2\sqrt{2}", None) == (False, "undecided")
    assert compare.compare(r"(1, \sqrt{8})", r"(1, 2\sqrt{2})", None) == (False, "undecided")
    assert compare.compare(r"\sqrt{8}", r"2\sqrt{2}", time.monotonic() - 1) == (False, "timeout")


@pytest.mark.parametrize("answer", ["7" * 1001, "(" * 25 + "7" + ")" * 25])
def test_a_long_or_deep_answer_is_compared_as_text(answer):
    assert compare.compare(f" {answer}", answer, None) == (True, "text")
    assert compare.compare(f"{answer}+0", answer, None) == (False, "text")
