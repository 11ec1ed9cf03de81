"""The stage `sft`: what it writes, and autocast to bfloat16."""

import pytest
import torch
from safetensors.torch import load_file

from nested_reft.config.sections import Lora, Prompt, Sft
from nested_reft.records import stage_record
from nested_reft.records.files import read_json, read_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages.sft import sft
from tests.conftest import TINY

SMALL = Sft(
    num_train_epochs=1,
    batch_size=2,
    per_device_train_batch_size=2,
    learning_rate=1e-4,
    bf16=False,
    gradient_checkpointing=False,
    save_steps=1,
)


def warm_up(out, data, settings=SMALL):
    """Run the stage on four problems, in two steps; return its folder."""
    record = StageRecord(out, "sft", {"model": "tiny-28", "seed": 0}, settings.model_dump(), {}, None, "test")
    sft(settings, Prompt(), TINY, 0, data, record)
    return out


def test_a_warm_up_writes_a_row_per_step_and_the_model(tmp_path, data):
    folder = warm_up(tmp_path / "run", data)
    rows, metrics = read_rows(folder / "metrics.jsonl"), read_json(folder / "metrics.json")
    assert [row["step"] for row in rows] == [1, 2]
    assert metrics["num_examples"] == 4 and metrics["loss"] == rows[-1]["loss"]
    assert metrics["train_runtime_s"] == pytest.approx(sum(row["perf/step_s"] for row in rows))
    assert (folder / "model/model.safetensors").exists() and not (folder / "model/training_args.bin").exists()


def test_a_warm_up_by_lora_writes_a_plain_model_that_its_adapter_was_merged_into(tmp_path, data, monkeypatch):
    lora = Lora(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    checkpoint = tmp_path / "kept"
    discard = stage_record.discard
    monkeypatch.setattr(
        stage_record, "discard", lambda folder: (folder.exists() and folder.rename(checkpoint)) or discard(folder)
    )
    settings = SMALL.model_copy(update={"lora": lora, "gradient_checkpointing": True, "learning_rate": 1e-2})
    folder = warm_up(tmp_path / "run", data, settings)
    assert not {path.name for path in (folder / "model").iterdir()} & {"adapter_config.json", "README.md"}
    last = checkpoint / "checkpoint-2"
    assert (last / "adapter_model.safetensors").exists() and not (last / "model.safetensors").exists()
    adapter, before = load_file(last / "adapter_model.safetensors"), load_file(TINY / "model.safetensors")
    after = load_file(folder / "model/model.safetensors")
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("q_proj.weight", "down_proj.weight"))}
    for name in changed:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        delta = 12 / 4 * adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
        torch.testing.assert_close(after[name], before[name] + delta)
    assert read_json(folder / "run.json")["settings"]["lora"]["r"] == 4


def test_a_warm_up_computes_in_bfloat16_without_a_gpu(tmp_path, data):
    half = read_rows(warm_up(tmp_path / "half", data, SMALL.model_copy(update={"bf16": True})) / "metrics.jsonl")
    single = read_rows(warm_up(tmp_path / "single", data) / "metrics.jsonl")
    for one, other in zip(half, single, strict=True):
        assert one["loss"] != other["loss"]  # the rounding of bfloat16 shows
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)
