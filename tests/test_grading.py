"""Answer extraction and verification."""

import pytest

from nested_reft.grading import correctness, extract_answer, is_correct, until_first_answer


def test_the_last_closed_box_is_the_answer():
    assert extract_answer(r"first \boxed{1}, then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert extract_answer(r"\boxed{ 7 } and \boxed{8") == "7"
    assert extract_answer("no box") is None
    assert extract_answer("\\boxed{" * 50_000) is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("42", "42"),
        ("42.0", "42"),
        ("1,234", "1234"),
        (r"\frac{1}{2}", "0.5"),
        ("1/2", r"\dfrac{1}{2}"),
        (r"\$18", "18"),
        ("2", ["3", "2"]),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    ],
)
def test_right_answers(found, expected):
    assert is_correct(f"so it is \\boxed{{{found}}}", expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [("42", "43"), ("4.2", "42"), ("", "0"), ("1/0", "1"), ("3", r"3\sqrt{13}"), ("12", "1"), ("2", ["3", "4"])],
)
def test_wrong_answers(found, expected):
    assert not is_correct(f"so it is \\boxed{{{found}}}", expected)


def test_no_reward_comes_from_after_the_natural_end():
    """With the end token banned, a model goes on after its answer: that is noise, right or wrong."""
    right_then_noise, noise_then_right = r"\boxed{5} \boxed{6}", r"\boxed{6} \boxed{5}"
    assert until_first_answer(right_then_noise + " x") == r"\boxed{5}"
    assert correctness([right_then_noise, noise_then_right, "5"], ["5", "5", "5"]) == [1.0, 0.0, 0.0]
    assert is_correct(noise_then_right, "5")  # in evaluation nothing is banned, and the last box counts
