"""A user's own study: `init`, `check`, `run` and `report` on a file of problems and a local model."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from nested_reft.records.files import read_json, read_rows
from nested_reft.records.mlflow_mirror import open_store
from tests.conftest import TINY, run

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
# The smallest sizes at which all stages have work.
SMALL = {
    "sft": {"batch_size": 8, "per_device_train_batch_size": 8, "lora": LORA, "gradient_checkpointing": True},
    "training": {
        "max_steps": 2,
        "prompts_per_step": 2,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "lora": LORA,
        "gradient_checkpointing": True,
    },
    "grid": {"mitigation": ["retrace"]},
    "evaluation": {"max_new_tokens": 8},
    "analysis": {"speed_rounds": 2},
}


@pytest.fixture()
def folder(tmp_path):
    """Return a folder with a model and a file of problems in the format of GSM8K."""
    shutil.copytree(TINY, tmp_path / "my-model")
    rows = [
        {
            "question": f"Ana has {n} coins and gets 3 more. How many coins does Ana have now?",
            "answer": f"The number of coins is {n}+3={n + 3}.\n#### {n + 3}",
        }
        for n in range(20, 50)
    ]
    (tmp_path / "coins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def begin(folder: Path, *options: str):
    """Run `init` in a folder."""
    return run("nested-reft", "init", "mine", "--model", "my-model", "--data", "coins.jsonl", *options, cwd=folder)


def test_init_shows_the_data_checks_the_study_and_names_the_next_commands(folder):
    started = begin(folder)
    assert started.returncode == 0, started.stderr
    for text in (
        "coins.jsonl: 30 rows with the columns question, answer (format GSM8K)",
        "Ana has 20 coins and gets 3 more.",
        "6 problems are held out in data/mine/test.jsonl, and 24 remain to train on",
        "Wrote mine.yaml.",
        "The study 'mine' can start",
        "nested-reft run mine.yaml",
        "nested-reft status mine.yaml",
        "nested-reft report mine.yaml",
    ):
        assert text in started.stdout, text


def test_init_refuses_a_model_without_a_tokenizer_and_writes_nothing(folder):
    (folder / "my-model/tokenizer.json").unlink()
    before = sorted(folder.rglob("*"))
    started = begin(folder)
    assert (started.returncode, started.stderr.count("\n")) == (2, 1)
    assert "model my-model has no tokenizer that can encode text" in started.stderr
    assert sorted(folder.rglob("*")) == before


def test_what_the_check_finds_after_init_is_one_sentence(folder):
    (folder / "my-model/model.safetensors").unlink()
    started = begin(folder)
    assert started.returncode == 2
    sentence, note = started.stderr.splitlines()
    assert "my-model" in sentence and "weights" in sentence
    assert note.startswith("mine.yaml is written all the same.")


def write_small_study(folder: Path) -> None:
    """Run `init`, and write the smallest sizes into the file of the study."""
    assert begin(folder).returncode == 0
    study = yaml.safe_load((folder / "mine.yaml").read_text())
    for section, keys in SMALL.items():
        study.setdefault(section, {}).update(keys)
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))


def check_trained_adapters(folder: Path) -> tuple[Path, Path]:
    """Check the warm-up and the training with skipped layers, whose models are plain; return their folders."""
    (warm_up,) = folder.glob("results/mine/sft/**/seed~0")
    (training,) = folder.glob("results/mine/train/**/mitigation~retrace/seed~0")
    card = (training / "model/README.md").read_text()
    assert "base_model: my-model" in card and "Only a LoRA adapter of rank 4 was trained." in card
    assert [row["nesting/num_skipped"] for row in read_rows(training / "metrics.jsonl")] == [4] * 2
    assert read_json(training / "run.json")["settings"]["training"]["lora"]["r"] == 4
    client, experiment = open_store(f"sqlite:///{folder}/results/mlflow.db", "mine")
    for stage, section in (("sft", "sft"), ("train", "training")):
        ranks = {
            found.data.params[f"{section}.lora.r"]
            for found in client.search_runs([experiment], f"tags.stage = '{stage}'")
        }
        assert ranks == {"4"}
    sampled = run("nested-reft", "sample", str(warm_up), str(training), "--problem", "What is 1 + 1?", cwd=folder)
    assert sampled.returncode == 0 and "warm-up, seed 0" in sampled.stdout and "retrace, seed 0" in sampled.stdout
    return warm_up, training


@pytest.mark.slow
def test_a_study_of_ones_own_with_lora_goes_from_init_to_a_training(folder):
    """Adapters are trained and merged into plain models; MLflow knows the rank."""
    write_small_study(folder)
    path = "model~my-model/dataset~coins/skip_ratio~0.15/border~1/mitigation~retrace/seed~0/run.json"
    for command in (["check", "mine.yaml"], ["run", "mine.yaml", "--", f"results/mine/train/{path}"]):
        done = run("nested-reft", *command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    check_trained_adapters(folder)


@pytest.mark.slow
@pytest.mark.nightly  # the test above stops after a training
def test_a_study_of_ones_own_with_lora_goes_from_init_to_the_report(folder):
    """The models are evaluated as plain models."""
    write_small_study(folder)
    for command in ("check", "run", "status", "report"):
        done = run("nested-reft", command, "mine.yaml", cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "<html" in (folder / "report.html").read_text()
    _, training = check_trained_adapters(folder)
    assert "The model has not been evaluated yet" not in (training / "model/README.md").read_text()
    (evaluation,) = folder.glob("results/mine/evaluate/train/**/mitigation~retrace/seed~0/run.json")
    assert read_json(evaluation)["inputs"]["model"]["path"].endswith("mitigation~retrace/seed~0/model")
    (baseline,) = folder.glob("results/mine/train/**/mitigation~base/seed~0")
    compared = run("nested-reft", "compare", str(baseline), str(training), cwd=folder)
    assert "The delta of +0.0 points" in compared.stdout, compared.stderr
    assert run("nested-reft", "export", str(training), cwd=folder).returncode == 0
    assert len(list(folder.glob("samples/samples_coins-held-out_*.jsonl"))) == 1
    again = run("nested-reft", "run", "mine.yaml", cwd=folder)
    assert "Nothing to be done" in again.stdout + again.stderr
