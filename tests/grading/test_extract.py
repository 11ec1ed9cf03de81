"""The answer of a completion is found in its last box, and in its first one for completions of fixed length."""

import pytest

from nested_reft.grading.extract import boxed, extract_answer, until_first_answer


def test_the_last_box_is_the_answer():
    assert extract_answer(r"first \boxed{1}, then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert extract_answer(r"\boxed {7}") == "7"
    assert extract_answer("no box") is None
    assert extract_answer(r"\boxed 7") is None
    assert extract_answer(r"\boxed{\boxed{5}}") == "5"
    assert extract_answer(r"\boxed{ 7 } and \boxed{8") is None  # the last one has no end
    assert extract_answer(r"<think>\boxed{1}</think> so 2") is None
    assert extract_answer(r"<think>\boxed{1}</think> so \boxed{2}") == "2"
    assert extract_answer("\\boxed{" * 50_000) is None
    assert extract_answer("\\boxed{" + "{" * 100_000 + "7" + "}" * 100_001) == "{" * 100_000 + "7" + "}" * 100_000


def test_a_fixed_length_completion_ends_with_its_first_answer():
    assert until_first_answer(r"\boxed{5} \boxed{6} x \boxed{") == r"\boxed{5}"
    assert until_first_answer(r"<think>\boxed{1}</think> \boxed{2} \boxed{3}") == r"<think>\boxed{1}</think> \boxed{2}"
    assert until_first_answer("no box") == "no box"


def test_an_escaped_brace_counts_only_where_a_box_would_stay_open_otherwise():
    assert extract_answer(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert extract_answer(r"\boxed{\{1, 2}") == r"\{1, 2"
    assert extract_answer(r"\boxed{7\}") == "7\\"


@pytest.mark.parametrize("answer", ["7", r"\frac{1}{2}", "", r"\{1\}"])
def test_a_boxed_answer_is_extracted(answer):
    assert extract_answer(boxed(answer)) == answer
