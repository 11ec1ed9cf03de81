"""The paths of what a study produces."""

from collections.abc import Iterator
from typing import Any

from nested_reft.config.study import Run, Study, expand_grid


def train_folder(run: Run) -> str:
    """Return the folder of a run below the stage: its path in the grid."""
    return "/".join(f"{axis}~{value}" for axis, value in run)


def products(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, settings) of every model that the study evaluates: pretrained, warmed up, trained."""
    for model in study.grid.model:
        yield f"pretrained/model~{model}", {"product": "pretrained", "model": model}
        for dataset in study.grid.dataset:
            for seed in study.grid.seed:
                path = f"sft/model~{model}/dataset~{dataset}/seed~{seed}"
                yield path, {"product": "sft", "model": model, "dataset": dataset, "seed": seed}
    for run in expand_grid(study):
        yield f"train/{train_folder(run)}", {"product": "train"} | run.model_dump()
