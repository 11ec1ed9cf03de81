"""Finding an evaluation from the path of a product, and whether a product is finished."""

import pytest

from nested_reft.errors import UserError
from nested_reft.records.files import write_versioned_json
from nested_reft.records.products import evaluation_folder, is_finished
from nested_reft.records.stage_record import StageRecord


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


def test_a_product_is_finished_if_it_is_whole_and_made_with_these_settings_from_these_inputs(tmp_path):
    data, other, out = tmp_path / "data", tmp_path / "other", tmp_path / "out"
    data.write_text("1 + 1?")
    other.write_text("2 + 2?")
    settings, inputs = {"seed": 0}, {"data": data}
    for files in ([], ["model"]):
        record = StageRecord(out, "train", {}, settings, inputs, None, "study")
        for name in files:
            (out / name).write_text("weights")
        assert not is_finished(out, settings, inputs)
        record.finish({})
        assert is_finished(out, settings, inputs) == (files == ["model"])
        if not files:
            (out / "run.json").unlink()
    assert not is_finished(out, {"seed": 1}, inputs)
    assert not is_finished(out, settings, {"data": other})
    (out / "model").write_text("weight")
    assert not is_finished(out, settings, inputs)
    (out / "model").unlink()
    assert not is_finished(out, settings, inputs)
