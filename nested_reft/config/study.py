"""A study: its sections, its grid of runs, and the checks across sections."""

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator, model_validator

from nested_reft.config.sections import (
    Analysis,
    BenchmarkSource,
    DatasetSource,
    Decontamination,
    Evaluation,
    Grid,
    Jobs,
    Mitigation,
    ModelSource,
    Name,
    Nesting,
    Prompt,
    Section,
    Sft,
    Tracking,
    Training,
    key,
)
from nested_reft.nesting import num_skipped, valid_layers


class Study(Section):
    """A whole study."""

    study: Name = key(..., "Name of the study: its folder under `results/` and `reports/`, its MLflow experiment.")
    models: dict[Name, ModelSource] = key(..., "The models that `grid.model` names.", "paper")
    datasets: dict[Name, DatasetSource] = key(..., "The training sets that `grid.dataset` names.", "paper")
    benchmarks: dict[Name, BenchmarkSource] = key(..., "All are run for every model produced.", "paper", min_length=1)
    decontamination: Decontamination = Decontamination()
    grid: Grid
    prompt: Prompt = Prompt()
    nesting: Nesting = Nesting()
    sft: Sft = Sft()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    analysis: Analysis = Analysis()
    tracking: Tracking = Tracking()
    jobs: Jobs = Jobs()

    @field_validator("benchmarks")
    @classmethod
    def overall_is_taken(cls, benchmarks: dict[str, BenchmarkSource]) -> dict[str, BenchmarkSource]:
        """Refuse a benchmark that is called as the mean over all of them."""
        if "overall" in benchmarks:
            raise ValueError("has a benchmark named `overall`, which is the mean over all; rename it")
        return benchmarks

    @model_validator(mode="after")
    def axes_name_what_exists(self) -> "Study":
        """Refuse a model or dataset on an axis that has no entry."""
        for axis, known in (("model", self.models), ("dataset", self.datasets)):
            for name in getattr(self.grid, axis):
                if name not in known:
                    raise ValueError(
                        f"has `grid.{axis}` {name!r}, an unknown {axis}; "
                        f"add it under `{axis}s` or choose one of {', '.join(known)}"
                    )
        return self

    @model_validator(mode="after")
    def ratios_leave_layers(self) -> "Study":
        """Refuse a skip ratio that a model cannot have, for the models that are here already."""
        for name in self.grid.model:
            if shape := self.models[name].shape:
                check_skip_ratios(name, shape, self.nesting.border, self.grid.skip_ratio)
        return self


class Run(Section):
    """One training run of the grid."""

    model: str
    dataset: str
    skip_ratio: float
    mitigation: Mitigation
    seed: int


def check_skip_ratios(model: str, shape: Mapping[str, Any], border: int, skip_ratios: list[float]) -> None:
    """Raise ValueError for a ratio that skips no layer of the model, more than it may, or as many as another.

    Args:
        model: its name, for the message.
        shape: its config.json: `num_hidden_layers` is N.
        border: b.
        skip_ratios: the ratios x of the grid.
    """
    num_layers = shape["num_hidden_layers"]
    valid = len(valid_layers(num_layers, border, shape.get("layer_types")))
    ratio_of: dict[int, float] = {}
    for skip_ratio in skip_ratios:
        skipped = num_skipped(num_layers, skip_ratio)
        if not 0 < skipped <= valid:
            raise ValueError(
                f"has skip_ratio {skip_ratio}, which skips {skipped} of the {num_layers} layers of {model}, "
                f"of which {valid} may be skipped at border {border}; choose a ratio that skips 1 to {valid}"
            )
        if skipped in ratio_of:
            raise ValueError(
                f"has a duplicate run: skip_ratio {skip_ratio} skips {skipped} of the {num_layers} layers of {model}, "
                f"as {ratio_of[skipped]} does; keep one of them"
            )
        ratio_of[skipped] = skip_ratio


def expand_grid(study: Study) -> list[Run]:
    """Return every training run of the study: per (model, dataset, seed) the baseline, then the instances."""
    grid = study.grid
    instances: list[tuple[float, Mitigation]] = [(0.0, "base")]
    instances += [(ratio, mitigation) for ratio in grid.skip_ratio for mitigation in grid.mitigation]
    return [
        Run(model=model, dataset=dataset, skip_ratio=ratio, mitigation=mitigation, seed=seed)
        for model in grid.model
        for dataset in grid.dataset
        for seed in grid.seed
        for ratio, mitigation in instances
    ]
