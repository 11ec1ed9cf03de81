"""Results as tables and as a figure, among them the committed results of the documentation."""

import json

import pytest

from nested_reft.bench import display
from tests.conftest import ROOT

TABLES = {"rollout": display.rollout_table, "train": display.train_table, "eval": display.eval_table}


def test_markdown_aligns_columns_and_leaves_missing_cells_empty():
    table = display.markdown([{"variant": "stock", "step": "1.5"}, {"variant": "engine", "step": "1", "score": "2"}])
    assert table.splitlines() == [
        "| variant | step | score |",
        "|:--------|:-----|:------|",
        "| stock   | 1.5  |       |",
        "| engine  | 1    | 2     |",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/reports/benchmarks").glob("*.json")), ids=lambda path: path.name)
def test_committed_results_have_the_current_names(path):
    results = json.loads(path.read_text())
    table = TABLES[results["bench"]](results)
    assert "engine" in table and results["settings"]["rounds"] > 0
    if results["bench"] == "rollout":
        assert len(display.speed_figure([results]).axes) == 2
