"""A study that is looked at before its last run is finished: its verdicts wait.

A test that is repeated at every look finds a difference sooner or later, also where there is none. A study is
therefore judged once, when all planned runs are finished. Until then a report shows estimates and their intervals.
McNemar's tests remain: each is of two finished runs, and later runs do not change it.
"""

import numpy as np
import pandas as pd

from nested_reft.config.study import instances
from nested_reft.report.rounding import is_p
from nested_reft.report.sources import RUN, Sources

WAITING = "waiting"


def run_counts(sources: Sources) -> tuple[int, int]:
    """Return the number of runs that are finished and evaluated, and the number that the study has planned."""
    grid = sources.config["grid"]
    planned = len(grid["model"]) * len(grid["dataset"]) * len(grid["seed"]) * (1 + len(instances(grid)))
    trained = sources.results[sources.results["product"] == "train"]
    return len(trained.drop_duplicates(RUN)), planned


def without_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of an unfinished study: no p, and the verdict `waiting` in place of one that data gave."""
    hidden = dict.fromkeys(filter(is_p, table.columns), np.nan)
    if "verdict" in table:
        return table.assign(**hidden, verdict=table["verdict"].where(table["verdict"] == "missing", WAITING))
    return table.assign(**hidden)
