"""Finding an evaluation from the path of a product."""

import pytest

from nested_reft.errors import UserError
from nested_reft.records.files import write_versioned_json
from nested_reft.records.products import evaluation_folder


@pytest.fixture()
def evaluation(tmp_path):
    """Return the folder of an evaluation of a training, with its files."""
    folder = tmp_path / "results/mine/evaluate/train/model~m/seed~0"
    folder.mkdir(parents=True)
    (folder / "records.parquet").touch()
    write_versioned_json(folder / "metrics.json", {})
    write_versioned_json(folder / "run.json", {"stage": "evaluate"})
    training = tmp_path / "results/mine/train/model~m/seed~0"
    (training / "model").mkdir(parents=True)
    write_versioned_json(training / "run.json", {"stage": "train"})
    return folder


@pytest.mark.parametrize(
    "path", ["evaluate/train/model~m/seed~0", "train/model~m/seed~0", "train/model~m/seed~0/model"]
)
def test_an_evaluation_is_found_from_each_of_its_paths(path, evaluation, tmp_path, monkeypatch):
    assert evaluation_folder(tmp_path / "results/mine" / path) == evaluation
    monkeypatch.chdir(tmp_path / "results/mine")
    assert evaluation_folder(type(evaluation)(path)) == evaluation


def test_a_product_that_was_not_evaluated_is_refused(evaluation, tmp_path):
    (evaluation / "metrics.json").unlink()
    with pytest.raises(UserError, match="seed~0 holds no finished evaluation"):
        evaluation_folder(tmp_path / "results/mine/train/model~m/seed~0")
