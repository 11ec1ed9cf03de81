"""The paths of a study's products."""

from string import Formatter

import pytest

from nested_reft.config import layout
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Run, Study
from tests.config.studies import changed, load
from tests.conftest import TINY


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


CELL = ("tiny-28", "mixed", 0)


def test_a_training_starts_from_the_warm_up():
    study = parse_settings(Study, load("config.yaml"))
    assert layout.start_of_training(study, *CELL) == ("results/embedded/sft/model~tiny-28/dataset~mixed/seed~0/model")


def test_without_epochs_there_is_no_warm_up_and_training_starts_from_the_pretrained_model():
    study = parse_settings(Study, changed("sft.num_train_epochs", 0))
    assert layout.start_of_training(study, *CELL) == "results/embedded/pretrained/model~tiny-28/model.json"
    assert {axes["product"] for _, axes in layout.products(study)} == {"pretrained", "train"}


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_checkpoint_of_the_user_takes_the_place_of_the_warm_up(epochs, tmp_path):
    (tmp_path / "mixed-0").symlink_to(TINY)
    settings = changed("models.tiny-28.sft_checkpoint", f"{tmp_path}/{{dataset}}-{{seed}}")
    settings["sft"]["num_train_epochs"] = epochs
    study = parse_settings(Study, settings)
    assert layout.start_of_training(study, *CELL) == f"{tmp_path}/mixed-0"
    assert {axes["product"] for _, axes in layout.products(study)} == {"pretrained", "sft", "train"}
