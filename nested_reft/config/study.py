"""A study: its sections, its grid of runs, and the checks across sections."""

import itertools
from collections.abc import Callable, Collection, Mapping
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
    Processes,
    Prompt,
    Section,
    Sft,
    Tracking,
    Training,
    check_whole_share,
    key,
    local_folder,
    model_shape,
)
from nested_reft.nesting import num_skipped, valid_layers
from nested_reft.strategies import choose_layers

# The axes of the grid that form an instance, in the order of paths, tables and names, each with the value of the
# baseline. The baseline skips no layers, so all borders share it, and its border is 0: it excludes no layer. A new
# axis needs an entry here, a list in `Grid`, and a field in `Run`.
BASELINE: dict[str, Any] = {"skip_ratio": 0.0, "border": 0, "mitigation": "base"}
INSTANCE = list(BASELINE)
# The axes that identify a run, in the same order.
RUN = ["model", "dataset", *INSTANCE, "seed"]
# Names show the border only if it is another one.
DEFAULT_BORDER = 1


def instance_label(instance: Mapping[Any, Any], grid: Mapping[str, Collection[Any]]) -> str:
    """Return the name of an instance: `10% retrace`, or `10% border 2 retrace` in a study of several borders.

    Args:
        instance: axis -> value. Without the axis `skip_ratio`, the name is that of a curve over the skip ratios.
        grid: axis -> the values in the study; `report.sources.grid_of` gives them for a table.
    """
    if instance.get("skip_ratio") == BASELINE["skip_ratio"]:
        return "baseline"
    words: dict[str, Callable[[Any], str]] = {
        "skip_ratio": lambda ratio: f"{100 * ratio:g}%",
        "border": lambda border: f"border {border}" if len(grid["border"]) > 1 else "",
        "mitigation": str,
    }
    return " ".join(filter(None, (words[axis](instance[axis]) for axis in INSTANCE if axis in instance)))


def instance_label_alone(axes: Mapping[str, Any]) -> str:
    """Return the name of an instance where its study is not known: a border is named unless it is the default.

    Args:
        axes: axis -> value, perhaps as the text of a path or of a tag.
    """
    instance = {axis: type(BASELINE[axis])(axes[axis]) for axis in INSTANCE}
    return instance_label(instance, {"border": {DEFAULT_BORDER, instance["border"]}})


class Study(Section):
    """A whole study."""

    study: Name = key(
        ..., "The name of the study. It names the folders under `results/` and `reports/`, and the MLflow experiment."
    )
    mirror: str | None = key(
        None,
        "A folder `<owner>/<name>/` per model or dataset, which is read instead of the hub; `nested-reft fetch` fills "
        "it. What it lacks is taken from the hub. The variable NESTED_REFT_MIRROR takes precedence. "
        "docs/how-to/mirror.md explains it.",
        exclude=True,  # the place of the mirror is not a property of a product
    )
    models: dict[Name, ModelSource] = key(
        ..., "The models, by the name that `grid.model` uses.", "paper", min_length=1
    )
    datasets: dict[Name, DatasetSource] = key(
        ..., "The training sets, by the name that `grid.dataset` uses.", "paper", min_length=1
    )
    benchmarks: dict[Name, BenchmarkSource] = key(
        ..., "The benchmarks, by name. Every model of the study is evaluated on all of them.", "paper", min_length=1
    )
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
    def overall_is_reserved(cls, benchmarks: dict[str, BenchmarkSource]) -> dict[str, BenchmarkSource]:
        """Refuse a benchmark with the name `overall`, which names the mean over all benchmarks."""
        if "overall" in benchmarks:
            raise ValueError(
                "has a benchmark named `overall`, which is the name of the mean over all benchmarks; rename it"
            )
        return benchmarks

    @model_validator(mode="after")
    def axes_name_entries(self) -> "Study":
        """Refuse a model or dataset on an axis of the grid that has no entry of its own."""
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
        """Refuse a skip ratio or fixed layers that a model cannot have. Models on the hub are checked later."""
        for name in self.grid.model:
            if shape := self.models[name].shape:
                for border in self.grid.border:
                    check_skip_ratios(name, shape, border, self.grid.skip_ratio)
                    check_fixed_layers(name, shape, border, self.grid.skip_ratio, self.nesting)
        return self

    @model_validator(mode="after")
    def groups_divide(self) -> "Study":
        """Refuse a share of the whole model that is not a whole number of completions, and one that vLLM samples."""
        check_whole_share(self.nesting, self.training)
        return self

    @model_validator(mode="after")
    def checkpoints_hold_the_model(self) -> "Study":
        """Refuse a checkpoint of the user that does not exist, or that is not one of its model."""
        for name in self.grid.model:
            paths = (self.models[name].checkpoint(dataset, seed) for dataset, seed in self.datasets_and_seeds())
            for path in filter(None, paths):
                num_layers = model_shape(local_folder(path)).get("num_hidden_layers")
                if num_layers is None:
                    raise ValueError(
                        f"has models.{name}.sft_checkpoint {path}, which does not hold the config.json of a language "
                        "model; give the folder of a transformers model"
                    )
                expected = self.models[name].shape.get("num_hidden_layers", num_layers)
                if num_layers != expected:
                    raise ValueError(
                        f"has models.{name}.sft_checkpoint {path}, which has {num_layers} layers where {name} has "
                        f"{expected}; give a checkpoint of the same model"
                    )
        return self

    @model_validator(mode="after")
    def jobs_name_models(self) -> "Study":
        """Refuse an entry of `jobs.models` that is not a model of the study."""
        for name in self.jobs.models:
            if name not in self.models:
                raise ValueError(
                    f"has jobs.models.{name}, but no model of this name; choose one of {', '.join(self.models)}"
                )
        return self

    @model_validator(mode="after")
    def all_jobs_use_gpus_or_none(self) -> "Study":
        """Refuse a study whose jobs compute on GPUs for one model and on the CPU for another."""
        if len({self.jobs.processes(name).gpus > 0 for name in self.grid.model}) > 1:
            raise ValueError(
                "has `jobs` with gpus 0 for one model and more for another, but a study runs on GPUs or on the CPU; "
                "run the models in studies of their own"
            )
        return self

    @model_validator(mode="after")
    def processes_divide_batches(self) -> "Study":
        """Refuse a number of processes that does not divide the micro-batches of a step."""
        for name in self.grid.model:
            count = self.jobs.processes(name).count
            for section, settings in (("sft", self.sft), ("training", self.training)):
                if section == "training" or self.warms_up(name):
                    try:
                        settings.check_processes(count)
                    except ValueError as error:
                        raise ValueError(f"has a section {section} that {error}") from None
        return self

    def processes(self, stage: str, model: str) -> Processes:
        """Return the processes and GPUs of a job.

        Args:
            stage: `measure_speed`, `sft`, `train` or `evaluate`.
            model: the name of the model.
        """
        of = self.jobs.processes(model)
        in_one = stage == "measure_speed" or (stage == "evaluate" and self.evaluation.sampler == "vllm")
        if in_one:  # one process on one GPU
            return Processes(gpus=min(1, of.gpus))
        return of

    def datasets_and_seeds(self) -> list[tuple[str, int]]:
        """Return the (dataset, seed) of each warm-up of a model."""
        return list(itertools.product(self.grid.dataset, self.grid.seed))

    def warms_up(self, model: str) -> bool:
        """Return whether the study runs SFT on a model before it trains the model."""
        return self.sft.num_train_epochs > 0 and self.models[model].sft_checkpoint is None


class Run(Section):
    """One training run of the grid."""

    model: str
    dataset: str
    skip_ratio: float
    border: int
    mitigation: Mitigation
    seed: int


def check_skip_ratios(model: str, shape: Mapping[str, Any], border: int, skip_ratios: list[float]) -> None:
    """Check that each ratio skips at least one layer, at most all valid layers, and a number of its own.

    Args:
        model: the name of the model, for the message.
        shape: the content of the model's config.json: `num_hidden_layers` is N.
        border: b.
        skip_ratios: the ratios x of the grid.

    Raises:
        ValueError: a ratio fails the check.
    """
    num_layers = shape["num_hidden_layers"]
    valid = len(valid_layers(num_layers, border, shape.get("layer_types")))
    ratio_of: dict[int, float] = {}
    for skip_ratio in skip_ratios:
        skipped = num_skipped(num_layers, skip_ratio)
        if not 0 < skipped <= valid:
            raise ValueError(
                f"has skip_ratio {skip_ratio}, which skips {skipped} of the {num_layers} layers of {model}, "
                f"of which {valid} can be skipped at border {border}; choose a ratio that skips 1 to {valid}"
            )
        if skipped in ratio_of:
            raise ValueError(
                f"has a duplicate run: skip_ratio {skip_ratio} skips {skipped} of the {num_layers} layers of {model}, "
                f"as {ratio_of[skipped]} does; keep one of them"
            )
        ratio_of[skipped] = skip_ratio


def check_fixed_layers(
    model: str, shape: Mapping[str, Any], border: int, skip_ratios: list[float], nesting: Nesting
) -> None:
    """Check that the layers of `nesting.strategy: fixed` may be skipped, and are as many as each ratio skips.

    Args:
        model: the name of the model, for the message.
        shape: the content of the model's config.json.
        border: b.
        skip_ratios: the ratios x of the grid.
        nesting: the section `nesting`; other strategies pass.

    Raises:
        ValueError: the layers fail the check.
    """
    if nesting.strategy != "fixed":
        return
    valid = valid_layers(shape["num_hidden_layers"], border, shape.get("layer_types"))
    for skip_ratio in skip_ratios:
        try:
            choose_layers(valid, num_skipped(shape["num_hidden_layers"], skip_ratio), 0, 0, nesting)
        except ValueError as error:
            raise ValueError(f"has skip_ratio {skip_ratio} for {model}, and {error}") from None


def instances(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the instances of a grid, axis -> value, in the order of the grid and without the baseline.

    Args:
        grid: the section `grid` as a dict.
    """
    values = itertools.product(*(grid[axis] for axis in INSTANCE))
    return [dict(zip(INSTANCE, instance, strict=True)) for instance in values]


def expand_grid(study: Study) -> list[Run]:
    """Return every training run of the study: for each (model, dataset, seed) the baseline, then the instances."""
    grid = study.grid
    return [
        Run(model=model, dataset=dataset, seed=seed, **instance)
        for model in grid.model
        for dataset in grid.dataset
        for seed in grid.seed
        for instance in [BASELINE, *instances(grid.model_dump())]
    ]
