"""The disk space that a study needs: its models, the checkpoints of the jobs that run at once, and its completions."""

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from nested_reft.config import layout
from nested_reft.config.sections import Training
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.model.shape import BYTES

# The stages that train a model, and the section of each.
SECTION_OF: dict[str, Literal["sft", "training"]] = {"sft": "sft", "train": "training"}
# A checkpoint has the trained weights and two moments of Adam for each of them.
NUMBERS_PER_CHECKPOINT = 3
# A new checkpoint is written before the one before it is deleted.
CHECKPOINTS_PER_JOB = 2
# A token of a recorded completion: its id, two log-probabilities and a weight, compressed.
BYTES_PER_COMPLETION_TOKEN = 14


def contents(study: Study) -> str:
    """Return what the disk space of a study is for, as text."""
    return "models, checkpoints and completions" if study.training.log_completions else "models and checkpoints"


def completion_bytes(settings: Training) -> int:
    """Return the bytes of the completions that a training keeps, if all have the largest length."""
    if not settings.log_completions:
        return 0
    completions = settings.prompts_per_step * settings.num_generations
    steps = min(settings.max_steps, settings.completions_total_limit)
    return steps * completions * settings.max_completion_length * BYTES_PER_COMPLETION_TOKEN


def bytes_needed(
    study: Study,
    parameters: dict[str, int],
    jobs: Counter[tuple[str, str]],
    at_once: int,
    trained: Mapping[tuple[str, str], int],
) -> int:
    """Return the disk space that the jobs need at most at any time, in bytes, without the records of evaluations.

    Args:
        study: the study.
        parameters: model -> number of parameters.
        jobs: (stage, model) -> number of jobs that have to run.
        at_once: the most jobs that run at a time.
        trained: (stage, model) -> number of parameters that are trained, where these are not all of them.
    """
    bytes_of = {"sft": BYTES[study.sft.dtype], "train": BYTES[study.training.dtype]}
    sizes = [
        (
            stage,
            parameters[model] * bytes_of[stage],
            trained.get((stage, model), parameters[model]) * bytes_of[stage],
            number,
        )
        for (stage, model), number in jobs.items()
        if stage in bytes_of and model in parameters and number
    ]
    running = min(at_once, sum(number for *_, number in sizes))
    largest = max((size for _, _, size, _ in sizes), default=0)
    models = sum(size * number for stage, size, _, number in sizes if study.jobs.keep_models or stage == "sft")
    if not study.jobs.keep_models:  # each running job writes or evaluates a trained model; the others are deleted
        models += running * max((size for _, size, *_ in sizes), default=0)
    trainings = sum(number for (stage, _), number in jobs.items() if stage == "train")
    completions = trainings * completion_bytes(study.training)
    return models + running * CHECKPOINTS_PER_JOB * NUMBERS_PER_CHECKPOINT * largest + completions


def check_disk(study: Study, directory: Path, jobs: Counter[tuple[str, str]], at_once: int) -> str:
    """Check that the disk has space for the jobs.

    Raises:
        UserError: the disk is too small; the sentence says how much is needed and free.
    """
    from nested_reft.model.weights import count_parameters, downloaded_folder

    folders = {name: downloaded_folder(study.models[name]) for name in study.grid.model}
    parameters = {name: count_parameters(folder) for name, folder in folders.items() if folder is not None}
    adapters: dict[tuple[str, str], int] = {}
    for stage, section in SECTION_OF.items():
        if lora := getattr(study, section).lora:
            from nested_reft.model.lora import read_adapter

            adapters |= {
                (stage, name): read_adapter(folder, lora, f"{section}.lora").num_parameters
                for name, folder in folders.items()
                if folder is not None
            }
    needed = bytes_needed(study, parameters, jobs, at_once, adapters)
    results = directory / layout.RESULTS.format(study=study.study)
    existing = next(folder for folder in [results, *results.parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"the {contents(study)} of the study need about {gigabytes(needed)} under {results}, where "
            f"{gigabytes(free)} are free; free space, or run the study in a folder on another disk"
        )
    unknown = ", without the models that are not downloaded yet" if len(parameters) < len(folders) else ""
    return f"about {gigabytes(needed)} needed{unknown}, {gigabytes(free)} free"


def gigabytes(number: int) -> str:
    """Return a number of bytes as text: `0.3 GB`, `1,800 GB`."""
    return f"{number / 1e9:,.1f} GB" if number < 1e10 else f"{math.ceil(number / 1e9):,} GB"
