"""The paper's own numbers, for comparison."""

import pandas as pd

from nested_reft.report.tables import table2

# Table 2 of the paper, its minus signs restored: per model and dataset the best and the worst delta.
PAPER_TABLE_2 = {
    "Qwen2.5-Math-1.5B-Instruct": {"SVAMP": (0.008, -0.016), "GSM8K": (0.015, -0.006), "Math12k": (0.026, -0.005)},
    "Qwen2.5-Math-7B-Instruct": {"SVAMP": (0.022, -0.070), "GSM8K": (0.010, -0.017), "Math12k": (-0.003, -0.022)},
}


def paper_table2() -> pd.DataFrame:
    """Return the paper's own Table 2, marked as such: it gives no intervals."""
    cells = pd.DataFrame(
        {"model": model, "dataset": dataset, "absolute_delta": delta}
        for model, datasets in PAPER_TABLE_2.items()
        for dataset, extremes in datasets.items()
        for delta in extremes
    )
    return table2(cells, "the paper (arXiv 2508.10123)")
