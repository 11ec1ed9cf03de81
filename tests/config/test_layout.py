"""The paths of a study's products."""

from string import Formatter

from nested_reft.config import layout
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Run, Study
from tests.config.studies import load


def test_products_of_the_embedded_study():
    products = dict(layout.products(parse_settings(Study, load("config.yaml"))))
    assert len(products) == 1 + 1 + 10
    assert list(products)[:3] == [
        "pretrained/model~tiny-28",
        "sft/model~tiny-28/dataset~mixed/seed~0",
        "train/model~tiny-28/dataset~mixed/skip_ratio~0.0/border~0/mitigation~base/seed~0",
    ]
    assert products["sft/model~tiny-28/dataset~mixed/seed~0"] == {
        "product": "sft",
        "model": "tiny-28",
        "dataset": "mixed",
        "seed": 0,
    }


def test_each_product_of_the_paper_has_its_own_path_which_names_its_axes():
    study = parse_settings(Study, load("paper.yaml"))
    products = list(layout.products(study))
    assert len({path for path, _ in products}) == len(products) == 2 + 6 + 60
    for path, axes in products:
        kind, *steps = path.split("/")
        assert kind == axes["product"]
        assert dict(step.split("~") for step in steps) == {
            axis: str(value) for axis, value in axes.items() if axis != "product"
        }


def test_the_path_of_a_run_has_the_axes_of_a_run():
    assert [field for _, field, *_ in Formatter().parse(layout.TRAIN) if field] == list(Run.model_fields)
