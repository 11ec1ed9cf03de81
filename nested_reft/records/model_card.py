"""The model card of a warm-up or a training: the README.md in its model folder, in the format of the Hugging Face hub.

The card is written when the model is finished and once more, with accuracies, when it has been evaluated. Checksums of
a folder leave README.md out, so that the second time changes the input of no other stage.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from nested_reft.config.mirror import read_manifest
from nested_reft.config.study import instance_label
from nested_reft.config.templates import TEMPLATES
from nested_reft.records.files import read_versioned_json
from nested_reft.records.products import evaluated_product

CARDS = Environment(
    loader=PackageLoader("nested_reft.records"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
# The settings that a card shows, of the section of its stage.
SHOWN_SETTINGS = ["num_train_epochs", "max_steps", "batch_size", "prompts_per_step", "num_generations"]
SHOWN_SETTINGS += [
    "max_completion_length",
    "learning_rate",
    "lr_scheduler_type",
    "loss_type",
    "reward_funcs",
    "dtype",
    "bf16",
]
METRIC = re.compile(r"eval/(?P<benchmark>.+)/(?P<name>pass_at_1|ci_low|ci_high|n)")


def base_model_name(folder: Path) -> str:
    """Return the name of a model on the hub, `embedded/<name>`, or the folder of any other model."""
    if cached := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{folder}/"):
        return f"{cached[1]}/{cached[2]}"
    if manifest := read_manifest(folder):
        return str(manifest["path"])
    return f"embedded/{folder.name}" if folder.parent.name == "embedded" else str(folder)


def license_of(folder: Path) -> str:
    """Return the license that the model card in a folder states in its metadata, or `unknown`."""
    card = folder / "README.md"
    metadata = re.match(r"---\n(.*?)\n---\n", card.read_text(), re.S) if card.exists() else None
    return str((yaml.safe_load(metadata[1]) or {}).get("license", "unknown")) if metadata else "unknown"


def accuracies_of(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return benchmark -> accuracy, interval and number of problems, from the metrics of an evaluation."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if match := METRIC.fullmatch(key):
            found.setdefault(match["benchmark"], {})[match["name"]] = value
    overall = found.pop("overall", None)
    return found | ({"overall": overall} if overall and len(found) > 1 else {})


def model_card(
    record: Mapping[str, Any],
    folder: str,
    base_model: str,
    warmed_up: bool,
    license: str,
    accuracies: Mapping[str, Any],
) -> str:
    """Return the text of a model card.

    Args:
        record: the content of the run.json of a warm-up or a training.
        folder: the path of the model.
        base_model: the name of the model that was trained.
        warmed_up: whether a training began with a warm-up of the study.
        license: the license of the base model, or `unknown`.
        accuracies: benchmark -> `pass_at_1`, `ci_low`, `ci_high` and `n`; empty before the evaluation.
    """
    run, settings, is_training = record["run"], record["settings"], record["stage"] == "train"
    section = settings["training" if is_training else "sft"]
    label = instance_label(run, {"border": [run["border"]]}) if is_training else "warm-up"
    shown: dict[str, Any] = {axis: value for axis, value in run.items() if axis not in ("model", "dataset")}
    shown |= {name: section[name] for name in SHOWN_SETTINGS if section.get(name) is not None}
    lora = section.get("lora") or {}
    shown |= {f"lora.{name}": value for name, value in lora.items()}
    tags = ["nested-reft", "trl", section["algorithm"] if is_training else "sft", *(["lora"] if lora else [])]
    metadata: dict[str, Any] = {"base_model": base_model, "library_name": "transformers", "license": license}
    metadata |= {"pipeline_tag": "text-generation", "tags": tags}
    text = CARDS.get_template("model_card.md.j2").render(
        **{key: record[key] for key in ("run", "settings", "provenance", "study", "finished")},
        title=f"{run['model']} on {run['dataset']}: {label}, seed {run['seed']}",
        is_training=is_training,
        base_model=base_model,
        prompt=TEMPLATES.get(settings["prompt"]["template"], settings["prompt"]["template"]),
        warmed_up=warmed_up,
        num_skipped=record.get("num_skipped", 0),
        num_layers=record.get("num_layers"),
        lora=lora,
        folder=folder,
        accuracies=accuracies,
        shown_settings=shown,
        license=license,
    )
    body = re.sub(r"\n{3,}", "\n\n", text)
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n{body}"


def write_model_card(product: Path, evaluation: Path | None = None) -> None:
    """Write the card of a finished warm-up or training into its model folder, in one piece.

    Args:
        product: the folder of the warm-up or training.
        evaluation: the folder of its evaluation, or None before the evaluation.
    """
    record = read_versioned_json(product / "run.json")
    base = Path(record["inputs"]["model"]["path"])
    warmed_up = record["stage"] == "train" and (base.parent / "run.json").exists()
    if warmed_up:
        base = Path(read_versioned_json(base.parent / "run.json")["inputs"]["model"]["path"])
    accuracies = accuracies_of(read_versioned_json(evaluation / "metrics.json")) if evaluation else {}
    text = model_card(record, str(product / "model"), base_model_name(base), warmed_up, license_of(base), accuracies)
    # The temporary file is outside the folder, because another stage may compute the folder's checksum meanwhile.
    temporary, model = product / "README.md.part", product / "model"
    temporary.write_text(text)
    before = model.stat()
    temporary.replace(model / "README.md")
    # Snakemake compares the time of the folder with those of later products, unless it has seen the job end.
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))


def add_accuracies(evaluation: Path) -> None:
    """Write the card of the warm-up or training that an evaluation of a study is about; other models have no card."""
    if product := evaluated_product(evaluation):
        write_model_card(product, evaluation)
