"""The digits that the tables of a report state."""

import numpy as np
import pandas as pd
import pytest

from nested_reft.report.rounding import stated, stated_table


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("absolute_delta", 0.0123456789, 0.0123457),
        ("instance", 2095.2712345, 2095.27),
        ("absolute_delta", 1.1e-17, 0.0),
        ("slope", -3e-18, 0.0),
        ("p", 0.0123456789, 0.01235),
        ("best_p", 1.23456e-30, 1.235e-30),
        ("price", 0.0123456789, 0.0123457),
    ],
)
def test_a_table_states_six_digits_and_four_of_a_p(column, value, expected):
    assert repr(stated(column, value)) == repr(expected)


@pytest.mark.parametrize(("column", "border"), [("p", 0.03125), ("p_holm", 0.046875), ("ci_low", 0.12345675)])
def test_the_last_bits_of_a_number_on_the_border_between_two_do_not_matter(column, border):
    neighbors = {border, *(border * (1 + bits * 2**-52) for bits in range(-20, 21))}
    assert len(neighbors) > 30
    assert len({stated(column, value) for value in neighbors}) == 1


def test_texts_and_whole_numbers_stay_as_they_are():
    table = pd.DataFrame({"model": ["m", None], "n": [1234567, 2], "p": [0.123456, np.nan], "mixed": [0.1 + 0.2, "x"]})
    rounded = stated_table(table)
    assert rounded["model"].equals(table["model"]) and rounded["n"].tolist() == [1234567, 2]
    assert rounded["p"].tolist()[0] == 0.1235 and np.isnan(rounded["p"].tolist()[1])
    assert rounded["mixed"].tolist() == [0.3, "x"]
    assert stated_table(rounded).equals(rounded)
    assert stated_table(table.head(0)).equals(table.head(0))
