"""The model card of a warm-up or a training."""

from pathlib import Path

import pytest
import yaml

from nested_reft.records.files import checksum, read_rows, read_versioned_json, write_rows, write_versioned_json
from nested_reft.records.model_card import add_accuracies, base_model_name, license_of, write_model_card
from tests.conftest import TINY

PROVENANCE = {"git_commit": "abc123", "git_dirty": False, "packages": {"torch": "2.13.0", "trl": "1.16.0", "x": None}}
SETTINGS = {"prompt": {"template": "r1"}, "sft": {"learning_rate": 0.25, "num_train_epochs": 1}}
TRAINING = {"algorithm": "grpo", "max_steps": 40, "learning_rate": 0.5}
AXES = {"model": "tiny-28", "dataset": "coins", "skip_ratio": 0.15, "border": 1, "mitigation": "retrace", "seed": 0}
METRICS = {
    f"eval/{name}/{key}": value
    for name, accuracy in {"algebra": 0.5, "one-step": 0.75, "overall": 0.625}.items()
    for key, value in {"pass_at_1": accuracy, "ci_low": accuracy - 0.1, "ci_high": accuracy + 0.1, "n": 40}.items()
}


@pytest.fixture()
def study(tmp_path, monkeypatch):
    """Return the results of a study with a warm-up and a training of `embedded/tiny-28`."""
    monkeypatch.chdir(tmp_path)
    results = Path("results/mine")
    common = {"provenance": PROVENANCE, "study": "mine", "finished": "2026-01-02T03:04:05+00:00"}
    warm_up = {"model": "tiny-28", "dataset": "coins", "seed": 0}
    for product, record in {
        "sft": {"stage": "sft", "run": warm_up, "settings": SETTINGS, "inputs": {"model": {"path": str(TINY)}}},
        "train": {
            "stage": "train",
            "run": AXES,
            "settings": SETTINGS | {"training": TRAINING, "nesting": {}},
            "inputs": {"model": {"path": "results/mine/sft/model"}},
            "num_skipped": 4,
            "num_layers": 28,
        },
    }.items():
        (results / product / "model").mkdir(parents=True)
        (results / product / "model/config.json").write_text("{}")
        write_versioned_json(results / product / "run.json", common | record)
        (results / "evaluate" / product).mkdir(parents=True)
        write_versioned_json(results / "evaluate" / product / "metrics.json", METRICS)
    return results


def read_card(product: Path) -> tuple[dict, str]:
    """Return the metadata and the text of a card."""
    _, metadata, text = (product / "model/README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_card_of_a_model_trained_with_lora_says_so_with_its_rank(study):
    record = read_versioned_json(study / "train/run.json")
    record["settings"]["training"]["lora"] = {"r": 4, "target_modules": ["q_proj"]}
    write_versioned_json(study / "train/run.json", record)
    write_model_card(study / "train")
    metadata, text = read_card(study / "train")
    assert metadata["tags"] == ["nested-reft", "trl", "grpo", "lora"]
    assert "Only a LoRA adapter of rank 4 was trained. It is merged into the weights" in text
    assert "| lora.r | 4 |" in text and "| lora.target_modules | ['q_proj'] |" in text


def test_the_card_of_a_training_names_its_origin_and_its_settings(study):
    write_model_card(study / "train")
    metadata, text = read_card(study / "train")
    assert metadata == {
        "base_model": "embedded/tiny-28",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["nested-reft", "trl", "grpo"],
    }
    assert text.startswith("\n# tiny-28 on coins: 15% retrace, seed 0\n")
    assert "and 40 steps of GRPO by Nested-ReFT on the training set `coins`" in text
    assert "4 of the 28 layers were skipped only while completions were sampled" in text
    assert 'folder = "results/mine/train/model"' in text
    assert "| learning_rate | 0.5 |" in text and "\nUser: {problem}\nAssistant: <think>\n````" in text
    assert "after a warm-up by SFT and 40 steps" in text and "LoRA" not in text
    assert "has not been evaluated yet" in text
    assert "commit `abc123`; torch 2.13.0, trl 1.16.0; study `mine`, finished 2026-01-02." in text


def test_the_card_of_a_warm_up_says_nothing_about_skipped_layers(study):
    write_model_card(study / "sft")
    metadata, text = read_card(study / "sft")
    assert metadata["tags"] == ["nested-reft", "trl", "sft"]
    assert "tiny-28 on coins: warm-up, seed 0" in text and "layers were skipped" not in text
    assert "| learning_rate | 0.25 |" in text


def test_a_training_without_a_warm_up_says_so(study):
    (study / "sft/run.json").unlink()
    write_model_card(study / "train")
    metadata, text = read_card(study / "train")
    assert metadata["base_model"] == "results/mine/sft/model" and metadata["license"] == "unknown"
    assert "`results/mine/sft/model` after 40 steps of GRPO" in text and "Unknown: the base model" in text


def test_an_evaluation_adds_accuracies(study):
    write_model_card(study / "train")
    add_accuracies(study / "evaluate/train")
    _, text = read_card(study / "train")
    assert "| algebra | 40 | 0.500 | 0.400 to 0.600 |" in text
    assert "| mean | 40 | 0.625 | 0.525 to 0.725 |" in text
    assert "not been evaluated" not in text
    assert sorted(path.name for path in (study / "train").iterdir()) == ["model", "run.json"]


def test_an_evaluation_of_another_model_writes_no_card(study, tmp_path):
    (study / "evaluate/pretrained").mkdir()
    add_accuracies(study / "evaluate/pretrained")
    add_accuracies(tmp_path)
    assert not list(tmp_path.rglob("README.md"))


def test_the_card_changes_neither_the_checksum_nor_the_time_of_the_folder(study):
    """A stage compares the checksum of its model with that of an interrupted attempt before it resumes.

    Snakemake runs again what reads a folder that is newer than its product.
    """
    model = study / "sft/model"
    before, time = checksum(model), model.stat().st_mtime_ns
    write_model_card(study / "sft")
    with_card = (model / "README.md").read_text()
    assert checksum(model) == before
    add_accuracies(study / "evaluate/sft")
    assert (model / "README.md").read_text() != with_card
    assert checksum(model) == before and model.stat().st_mtime_ns == time
    write_rows(model / "other.jsonl", read_rows(model / "config.json"))
    assert checksum(model) != before


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/cache/hub/models--Qwen--Qwen2.5-Math-1.5B/snapshots/1f2e", "Qwen/Qwen2.5-Math-1.5B"),
        (str(TINY), "embedded/tiny-28"),
        ("my/model", "my/model"),
    ],
)
def test_a_base_model_has_its_name_on_the_hub_or_its_folder(folder, name):
    assert base_model_name(Path(folder)) == name


@pytest.mark.parametrize(
    ("card", "license"),
    [("---\nlicense: mit\n---\ntext", "mit"), ("---\nlanguage: en\n---\n", "unknown"), ("text", "unknown")],
)
def test_the_license_is_that_of_the_base_model_or_unknown(card, license, tmp_path):
    assert license_of(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text(card)
    assert license_of(tmp_path) == license
