"""What the paper reports and configures."""

import pytest

from nested_reft.report.paper import PAPER_TABLE_2, config_table, paper_table2
from tests import synthetic


def test_table_2_of_the_paper():
    table = paper_table2().set_index(["model", "dataset"])
    means = table.xs("mean over datasets", level="dataset")
    assert means[["best_paper_form", "worst_paper_form"]].values.tolist() == [[0.016, 0.009], [0.009, 0.036]]
    assert means["worst_delta"].tolist() == pytest.approx([-0.009, -0.109 / 3])
    assert table.loc[("Qwen2.5-Math-7B-Instruct", "Math12k"), "best_delta"] == -0.003
    assert table.loc[("Qwen2.5-Math-7B-Instruct", "SVAMP"), "worst_delta"] == -0.070
    assert [len(datasets) for datasets in PAPER_TABLE_2.values()] == [3, 3]


def test_config_table_lists_what_differs_from_the_paper():
    table = config_table(synthetic.study().model_dump()).set_index("key")
    assert table.loc["training.max_steps"].tolist() == ["500", "40"]
    assert set(table.index) == {"training.max_steps", "grid.seed"}
