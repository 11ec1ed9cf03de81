"""The command `sample`: what one or several models answer to a problem, side by side."""

from pathlib import Path
from typing import NamedTuple

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.config.study import instance_label
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.records.files import read_versioned_json
from nested_reft.stages.evaluate import generate_completions


class SampledModel(NamedTuple):
    """A model to sample from: its name in the output, its folder, and the prompt that it was trained with."""

    name: str
    folder: Path
    prompt: Prompt


def find_model(folder: Path) -> SampledModel:
    """Return a model with the prompt of its run; a model that is not of a run has the default prompt.

    Args:
        folder: the folder of a warm-up or a training, or of a model.

    Raises:
        UserError: the folder holds no model.
    """
    product = folder.parent if folder.name == "model" else folder
    weights = product / "model" if (product / "model").is_dir() else folder
    if not (weights / "config.json").exists():
        raise UserError(f"{folder} holds no model; give a folder such as results/<study>/train/..., or one of a model")
    if not (product / "run.json").exists():
        return SampledModel(folder.name, weights, Prompt())
    record = read_versioned_json(product / "run.json")
    run = record["run"]
    name = instance_label(run, {"border": [run["border"]]}) if record["stage"] == "train" else "warm-up"
    return SampledModel(f"{name}, seed {run['seed']}", weights, Prompt(**record["settings"]["prompt"]))


def sample(models: list[SampledModel], problem: str, settings: Evaluation) -> list[list[str]]:
    """Return the completions of each model, `settings.num_samples` of each."""
    return [
        generate_completions(
            str(model.folder), [format_prompt(problem, model.prompt.template)] * settings.num_samples, settings
        )[0]
        for model in models
    ]
