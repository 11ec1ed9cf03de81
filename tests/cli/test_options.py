"""Options and helpers that several commands share."""

import io
import json
import logging
import threading
import time

import pytest

from nested_reft.cli.options import made_by_another, model_folder, open_record, read_ratios, read_settings
from nested_reft.cli.stages import prepare_model
from nested_reft.config.stage_settings import PrepareBenchmarks
from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_json
from nested_reft.records.lock import lock_product
from nested_reft.records.stage_record import StageRecord
from tests.conftest import TINY

JSON = '{"benchmarks": {"algebra": {"path": "embedded/algebra", "size": 2}}}'
YAML = "benchmarks:\n  algebra: {path: embedded/algebra, size: 2}\n"


@pytest.mark.parametrize(("settings", "piped"), [(JSON, ""), ("-", JSON), ("-", YAML)])
def test_settings_are_json_or_piped_json_or_yaml(settings, piped, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    assert read_settings(PrepareBenchmarks, settings).benchmarks["algebra"].size == 2


def test_settings_are_a_yaml_file(tmp_path):
    (tmp_path / "study.yaml").write_text(YAML)
    assert read_settings(PrepareBenchmarks, str(tmp_path / "study.yaml")).benchmarks["algebra"].size == 2
    (tmp_path / "broken.yaml").write_text("benchmarks: [")
    with pytest.raises(UserError, match=r"broken\.yaml is not YAML"):
        read_settings(PrepareBenchmarks, str(tmp_path / "broken.yaml"))
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        read_settings(PrepareBenchmarks, str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "--settings is not JSON"),
        (YAML, "--settings is not JSON"),
        ('{"benchmarks": {}, "x": 1}', "config key `x` is not known"),
    ],
)
def test_settings_with_a_mistake_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        read_settings(PrepareBenchmarks, settings)


def test_a_model_is_given_by_its_folder_its_embedded_name_or_a_note_with_its_path(tmp_path):
    (tmp_path / "weights").mkdir()
    write_json(tmp_path / "model.json", {"path": str(tmp_path / "weights")})
    assert (
        model_folder(str(tmp_path / "model.json")) == model_folder(str(tmp_path / "weights")) == tmp_path / "weights"
    )
    assert (model_folder("embedded/tiny-28") / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no-such-folder", "model 'no-such-folder' is not a folder; give the folder of a model or embedded/<name>"),
        ("embedded/tiny-82", "is not an embedded model; choose one of tiny-28, wide-20"),
        ("x.gguf", "x.gguf is a GGUF file and not the folder of a model; run `nested-reft prepare gguf x.gguf`"),
        ("model.json", "gone, which model.json names, does not exist; delete model.json and run the study again"),
    ],
)
def test_a_model_that_does_not_exist_is_refused(model, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").write_text("GGUF")
    write_json(tmp_path / "model.json", {"path": "gone"})
    with pytest.raises(UserError, match=words):
        model_folder(model)


def test_ratios_are_separated_by_commas():
    assert read_ratios("0, 0.05,0.1") == [0, 0.05, 0.1]


@pytest.mark.parametrize("text", ["", "1", "-0.1", "a", "0.1,", "nan"])
def test_a_ratio_that_is_not_from_0_to_below_1_is_refused(text):
    with pytest.raises(UserError, match="--skip-ratios is"):
        read_ratios(text)


def test_the_log_of_a_stage_names_its_run_its_attempts_and_its_product(tmp_path, caplog):
    out, data = tmp_path / "sft", tmp_path / "train.jsonl"
    data.write_text("{}\n")
    caplog.set_level(logging.INFO, logger="nested_reft")
    run = {"model": "tiny-28", "seed": 0}
    with pytest.raises(KeyboardInterrupt), open_record(out, "sft", run, {}, {"data": data}, None):
        raise KeyboardInterrupt
    with open_record(out, "sft", run, {}, {"data": data}, None) as record:
        record.finish({"loss": 1.0})
    first, second, end = [message for message in caplog.messages if message.startswith("sft")]
    assert first == "sft starts (attempt 1): model tiny-28, seed 0"
    assert second == "sft starts (attempt 2): model tiny-28, seed 0"
    assert end.startswith("sft ends after ") and end.endswith(f" s: {out}")
    assert read_json(out / "run.json")["attempts"] == 2


def test_a_product_that_another_process_finishes_meanwhile_is_not_made_again(tmp_path):
    """The other process, a job of a Snakemake that was killed, is a thread here."""
    settings, out = read_settings(PrepareBenchmarks, JSON), tmp_path / "out"
    record = StageRecord(out, "evaluate", {}, json.loads(settings.model_dump_json()), {}, None, "study")
    (out / "records.parquet").write_text("records")
    held = threading.Event()

    def finish():
        with lock_product(out):
            held.set()
            time.sleep(0.3)
            record.finish({})

    other = threading.Thread(target=finish)
    other.start()
    held.wait()
    assert made_by_another(settings, {}, out)
    other.join()
    assert not made_by_another(settings, {}, out)  # the user wants it again


def test_a_model_of_a_mirror_is_found_where_the_mirror_is_now(tmp_path, monkeypatch):
    source = {"path": "owner/tiny"}
    for place in ("old", "new"):
        (tmp_path / place / "owner").mkdir(parents=True)
        (tmp_path / place / "owner/tiny").symlink_to(TINY)
    monkeypatch.setenv("NESTED_REFT_MIRROR", str(tmp_path / "old"))
    prepare_model(json.dumps(source), tmp_path / "model.json")
    assert model_folder(str(tmp_path / "model.json")) == tmp_path / "old/owner/tiny"
    monkeypatch.setenv("NESTED_REFT_MIRROR", str(tmp_path / "new"))
    assert model_folder(str(tmp_path / "model.json")) == tmp_path / "new/owner/tiny"
    monkeypatch.setenv("NESTED_REFT_MIRROR", "")
    assert model_folder(str(tmp_path / "model.json")) == tmp_path / "old/owner/tiny"
