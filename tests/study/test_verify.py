"""The verification of a study: each product against its checksums, its settings and its inputs."""

import shutil
from pathlib import Path

import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.records.files import checksum, read_json, write_json
from nested_reft.report.collect import collect
from nested_reft.study.jobs import job_paths
from nested_reft.study.verify import Fault, changed_keys, faults, started_settings
from tests.conftest import run

RETRACE = "train/model~tiny-28/dataset~mixed/skip_ratio~0.15/border~1/mitigation~retrace/seed~0"


@pytest.fixture()
def finished(smoke_study, tmp_path):
    """Return a copy of a finished study, which a test may damage."""
    return Path(shutil.copytree(smoke_study, tmp_path / "study", symlinks=True))


def found(directory: Path, study: Study | None = None) -> list[Fault]:
    """Return the faults of the smoke study in a working directory, without those of the commit."""
    study = study or started_settings(directory / "results/smoke")
    return [fault for fault in faults(directory, study, job_paths(study)) if "products" not in fault.path]


def damage(file: Path) -> None:
    """Change one byte of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_finished_study_has_no_fault_and_a_damaged_model_is_named_and_not_read(finished):
    assert found(finished) == []
    warm_up = "sft/model~tiny-28/dataset~mixed/seed~0"
    model = finished / "results/smoke" / warm_up / "model"
    damage(model / "model.safetensors")
    first, *others = found(finished)
    assert first == Fault("damaged", warm_up, "model is not what the stage wrote: its checksum differs")
    readers = [fault for fault in others if fault.kind == "stale"]  # 4 trainings and an evaluation
    assert len(readers) == len(others) == 5
    assert {fault.sentence.split(" (")[0] for fault in readers} == {"its input model"}
    verified = run("nested-reft", "verify", "results/smoke", cwd=finished)
    assert verified.returncode == 1
    assert f"damaged     {warm_up}: model is not what" in verified.stdout
    assert "6 faults in the 12 products of the study 'smoke'." in verified.stdout

    record = read_json(finished / "results/smoke" / RETRACE / "run.json")
    settings = yaml.safe_dump(record["settings"])
    (finished / "settings.yaml").write_text(settings)
    options = ("--settings", "settings.yaml", "--data", "results/smoke/data/dataset~mixed/train.jsonl")
    trained = run("nested-reft", "train", *options, "--model", str(model), "--out", "out", cwd=finished)
    assert trained.returncode == 2 and trained.stderr.count("\n") == 1
    assert "seed~0/model is not what its stage wrote: its checksum differs" in trained.stderr
    assert not (finished / "out/run.json").exists()


def test_a_damaged_evaluation_is_not_analysed(finished):
    evaluation = finished / "results/smoke/evaluate" / RETRACE
    damage(evaluation / "records.parquet")
    assert [(fault.kind, fault.path) for fault in found(finished)] == [("damaged", f"evaluate/{RETRACE}")]
    with pytest.raises(UserError, match=r"records.parquet is not what its stage wrote: its checksum differs"):
        collect(started_settings(finished / "results/smoke"), finished / "results/smoke")


def test_damaged_and_missing_data_are_named(finished):
    data = finished / "results/smoke/data"
    damage(data / "benchmarks.jsonl")
    (data / "dataset~mixed/train.jsonl").unlink()
    first, second, *others = found(finished)
    assert first[:2] == ("damaged", "data/benchmarks.jsonl") and second[:2] == (
        "missing",
        "data/dataset~mixed/train.jsonl",
    )
    assert others and {fault.kind for fault in others} == {"stale"}  # the evaluations have read other benchmarks


def test_missing_unfinished_stale_and_orphaned_products_are_listed(finished):
    results = finished / "results/smoke"
    study = started_settings(results)
    (results / RETRACE / "metrics.jsonl").unlink()
    (results / f"evaluate/{RETRACE}/run.json").unlink()
    shutil.rmtree(results / "evaluate/pretrained/model~tiny-28")
    baseline = "train/model~tiny-28/dataset~mixed/skip_ratio~0.0/border~0/mitigation~base/seed~0"
    (results / baseline / "run.json").unlink()
    (results / baseline / "checkpoints").mkdir()
    by_path = {fault.path: fault for fault in found(finished)}
    assert {path: fault.kind for path, fault in by_path.items()} == {
        RETRACE: "missing",
        f"evaluate/{RETRACE}": "missing",
        "evaluate/pretrained/model~tiny-28": "missing",
        baseline: "unfinished",
    }
    assert by_path[RETRACE].sentence == "metrics.jsonl is missing"

    changed = study.model_dump()
    changed["evaluation"]["seed"] = 3
    changed["grid"]["mitigation"] = ["base", "retrace"]
    kinds = {(fault.kind, fault.path): fault.sentence for fault in found(finished, parse_settings(Study, changed))}
    practical = RETRACE.replace("retrace", "practical")
    assert kinds[("orphaned", practical)] == kinds[("orphaned", f"evaluate/{practical}")]
    assert kinds[("stale", f"evaluate/{baseline}")] == "was made with another evaluation.seed"


def test_products_of_another_commit_are_counted(finished):
    results = finished / "results/smoke"
    path = results / RETRACE / "run.json"
    record = read_json(path)
    record["provenance"]["git_commit"] = "0" * 40
    write_json(path, record)
    study = started_settings(results)
    listed = list(faults(finished, study, job_paths(study)))
    (fault,) = [one for one in listed if one.sentence.startswith("made by commit 000000000000")]
    assert (fault.kind, fault.path) == ("stale", "1 of 12 products")


def test_a_run_json_that_was_cut_off_is_one_fault_among_others(finished):
    results = finished / "results/smoke"
    record = results / RETRACE / "run.json"
    record.write_text(record.read_text()[:100])
    (results / f"evaluate/{RETRACE}/metrics.json").unlink()
    kinds = {fault.path: (fault.kind, fault.sentence) for fault in found(finished)}
    kind, sentence = kinds.pop(RETRACE)
    assert kind == "damaged" and "run.json is not JSON" in sentence
    assert kinds == {f"evaluate/{RETRACE}": ("missing", "metrics.json is missing")}


def test_a_deleted_model_is_a_fault_only_if_the_study_keeps_models(finished):
    results = finished / "results/smoke"
    study = started_settings(results)
    shutil.rmtree(results / RETRACE / "model")
    assert [(fault.path, fault.sentence) for fault in found(finished)] == [(RETRACE, "model is missing")]
    jobs = study.jobs.model_copy(update={"keep_models": False})
    assert found(finished, study.model_copy(update={"jobs": jobs})) == []


def test_keys_in_which_settings_differ():
    assert changed_keys({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 2}) == ["a.c", "d", "e"]


def test_a_folder_of_no_study_is_one_sentence(tmp_path):
    (tmp_path / "results/other").mkdir(parents=True)
    verified = run("nested-reft", "verify", "results/other", cwd=tmp_path)
    assert verified.returncode == 2 and "give the YAML file of the study" in verified.stderr


def test_a_dequantised_model_that_is_missing_or_damaged_is_named(finished):
    note = finished / "results/smoke/pretrained/model~tiny-28/model.json"
    folder = finished / "models/small"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    write_json(note, read_json(note) | {"path": "models/small", "sha256": checksum(folder)})
    assert found(finished) == []
    damage(folder / "model.safetensors")
    path = "pretrained/model~tiny-28/model.json"
    sentence = "the dequantised model models/small is not what was prepared: its checksum differs"
    assert found(finished) == [Fault("damaged", path, sentence)]
    shutil.rmtree(folder)
    assert found(finished) == [Fault("missing", path, "the dequantised model models/small is missing")]
