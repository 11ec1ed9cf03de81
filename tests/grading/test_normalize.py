"""Normal forms of answers: numbers, units, names, collections, intervals."""

from fractions import Fraction

import pytest

from nested_reft.grading.normalize import (
    Collection,
    bracket_depth,
    clean,
    name_and_value,
    same_number,
    split_outside_brackets,
    split_unit,
    to_collection,
    to_interval,
    to_number,
    without_approximation,
    without_membership,
    without_units,
)


@pytest.mark.parametrize(
    ("text", "value", "exact", "percent"),
    [
        ("1,234.5", Fraction(2469, 2), False, False),
        ("- 12 345", Fraction(-12345), True, False),
        ("+.5", Fraction(1, 2), False, False),
        (r"0.1\overline{6}", Fraction(1, 6), True, False),
        (r"-.\overline{3}", Fraction(-1, 3), True, False),
        (r"6.02\times 10^{23}", 602 * Fraction(10) ** 21, False, False),
        ("10^{-3}", Fraction(1, 1000), True, False),
        ("-2e3", Fraction(-2000), True, False),
        ("-2^{10}", Fraction(-1024), True, False),
        ("3 1/2", Fraction(7, 2), True, False),
        (r"-\frac{-1}{2}", Fraction(1, 2), True, False),
        (r"2 + \frac{1}{4}", Fraction(9, 4), True, False),
        ("1.5/2", Fraction(3, 4), False, False),
        ("(-7)/(2)", Fraction(-7, 2), True, False),
        (r"28\%", Fraction(28), True, True),
        ("(5)", Fraction(5), True, False),
        (r"3 \text{ million}", Fraction(3_000_000), True, False),
        ("1.5 dozen", Fraction(18), False, False),
    ],
)
def test_every_form_of_a_number(text, value, exact, percent):
    assert to_number(text) == (value, exact, percent)


@pytest.mark.parametrize(
    "text", ["", "x", "1/0", r"\frac{0}{0}", "1.2.3/4", "10^{401}", "1e999999", "0^{0}", "2^{1000}", "1" * 401, "1,2"]
)
def test_other_texts_are_not_numbers(text):
    assert to_number(text) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1/3", "2/6", True),
        ("1/3", "0.3333333", True),
        ("1/3", "0.333", False),
        ("28%", "28", True),
        ("28%", "0.28", True),
        ("28%", "0.28%", False),
        ("10000000", "10000001", False),
        ("10000000.0", "10000001", True),
    ],
)
def test_decimals_are_compared_with_a_tolerance_and_percentages_also_as_hundredths(one, other, same):
    assert same_number(to_number(one), to_number(other)) == same_number(to_number(other), to_number(one)) == same


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        (r"$\dfrac12$", r"\frac{1}{2}"),
        ("1{,}234", "1234"),
        (r"\left( 3 ,\, 4 \right)", "( 3 , 4 )"),
        ("2**(1/4)", "2^{1/4}"),
        ("√2 ≤ x²", r"\sqrt{2} \le x^{2}"),
        ("33.5 percent", "33.5%"),
        ("12.", "12"),
    ],
)
def test_an_answer_has_one_spelling(answer, cleaned):
    assert clean(answer) == cleaned


def test_units_are_dropped_and_other_words_stay_where_they_differ():
    assert split_unit(r"15\mathrm{m/s}") == ("15", r"\mathrm{m/s}", True)
    assert split_unit("18 cm^2") == ("18", "cm^2", True)
    assert split_unit("2rs") == ("2rs", "", False)
    assert without_units(r"\$18", r"18\text{ dollars}") == ("18", "18")
    assert without_units(r"12\text{ marbles}", "12") == ("12", "12")
    differing = (r"12\text{ marbles}", r"12\text{ stones}")
    assert without_units(*differing) == differing


def test_the_value_of_an_approximation_a_membership_and_an_assignment():
    assert without_approximation(r"\frac{1}{3} \approx 0.33") == r"\frac{1}{3}"
    assert without_approximation(r"r \approx 0.33") == "0.33"
    assert without_membership(r"x \in (1, 2)") == "(1, 2)"
    assert name_and_value("x = 2 + 3 = 5") == ("x", "5")
    assert name_and_value("2 + 3 = 5") == ("2 + 3", "5")
    assert name_and_value("2x + z = 1") == ("", "2x + z = 1")


@pytest.mark.parametrize(
    ("text", "collection"),
    [
        ("1,2", Collection("", ["1", "2"])),
        ("2 and 3", Collection("", ["2", "3"])),
        ("(1,(2,3)]", Collection("(]", ["1", "(2,3)"])),
        (r"\{1\}", Collection("{}", ["1"])),
        (r"\{x: x>2\}", None),
        ("(1)(2)", None),
        (r"1 \pm a", Collection("", ["1 + a", "1 - a"])),
        (r"(0,1)\cup (2,3)", Collection("union", ["(0,1)", "(2,3)"])),
        (r"x<2 \text{ or } x>5", Collection("or", ["x<2", "x>5"])),
        (r"\begin{pmatrix}1&2\cr 3&4\end{pmatrix}", Collection("matrix", ["1", "2", r"\cr", "3", "4", r"\cr"])),
    ],
)
def test_the_elements_of_a_collection(text, collection):
    assert to_collection(text) == collection


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("1<x<2", "(1, 2)"),
        ("2>x>1", "(1, 2)"),
        (r"-2\le x\le 7", "[-2, 7]"),
        ("x>2", r"(2, \infty)"),
        ("3>x", r"(-\infty, 3)"),
        (r"x<-1 \text{ or } x>1", r"(-\infty, -1)\cup (1, \infty)"),
        ("x=1", None),
    ],
)
def test_an_inequality_as_an_interval(text, interval):
    assert to_interval(text) == interval


def test_brackets():
    assert bracket_depth(r"(1,[2,{3}]) \{4\}") == 3
    assert split_outside_brackets("1, (2, 3); {4,5}") == ["1", "(2, 3)", "{4,5}"]
