"""How far the samples of a run were off-policy: the median of each metric over its steps.

A single unlikely token can make the KL estimate of a step huge, so that a mean over the steps would show such tokens.
"""

import pandas as pd

from nested_reft.report.sources import CELL, INSTANCE

ACCEPTANCE, ESS = "sampling/acceptance_rate", "sampling/ess"


def kl_column(steps: pd.DataFrame) -> str:
    """Return the column of the KL estimate: k3, which is never negative, or k1 in a report that lacks k3."""
    return "sampling/k3_kl" if "sampling/k3_kl" in steps and steps["sampling/k3_kl"].notna().any() else "sampling/kl"


def run_medians(steps: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: the medians over its steps of the KL, the acceptance rate and the effective sample size.

    Args:
        steps: a row per run and step.
    """
    metrics = [kl_column(steps), ACCEPTANCE, ESS]
    return steps.groupby([*CELL, *INSTANCE, "seed"], sort=False)[metrics].median().reset_index()
