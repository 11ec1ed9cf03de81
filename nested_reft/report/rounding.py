"""How many digits the tables of a report state.

The last digits of a computed number depend on the machine: libraries of linear algebra add in an order of their own.
A report states six significant digits, of which a reader uses three or four, and four of a p-value. Everything that
follows from a table, such as a sort order, the best instance, a caption or a verdict, follows from the stated numbers,
so that a report is the same on every machine.
"""

import math
from typing import Any

import pandas as pd

DIGITS = 6
DIGITS_OF_P = 4
DECIMALS = 9  # a difference of two equal numbers is 0, and not 1e-17
# A number half way between two stated numbers, such as a p of 0.03125 at three digits, is computed a little above or a
# little below it. Rounding to these digits first gives the number itself.
COMPUTED_DIGITS = 12


def is_p(column: str) -> bool:
    """Return whether a column holds p-values."""
    return column == "p" or column.startswith("p_") or column.endswith("_p")


def stated(column: str, value: float) -> float:
    """Return the number that a report states for a value of this column."""
    computed = float(f"{value:.{COMPUTED_DIGITS}g}")
    if is_p(column):  # it may be as small as 1e-100
        return float(f"{computed:.{DIGITS_OF_P}g}")
    return round(float(f"{computed:.{DIGITS}g}"), DECIMALS) + 0.0  # + 0.0 turns -0 into 0


def stated_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the numbers that a report states; texts and whole numbers stay as they are."""

    def of_column(column: pd.Series) -> pd.Series:
        if column.dtype not in (float, object):
            return column
        values: list[Any] = [
            stated(str(column.name), value) if isinstance(value, float) and math.isfinite(value) else value
            for value in column
        ]
        return pd.Series(values, column.index, column.dtype)

    return table.apply(of_column) if len(table) else table
