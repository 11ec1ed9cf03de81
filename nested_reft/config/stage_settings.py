"""The settings of each stage, which Snakemake passes to the stage as JSON."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nested_reft.config.sections import (
    BenchmarkSource,
    DatasetSource,
    Decontamination,
    Dtype,
    Evaluation,
    Lora,
    Mitigation,
    Name,
    Nesting,
    Prompt,
    RatioLevel,
    Sampler,
    Section,
    Seed,
    Sft,
    Template,
    Training,
    check_whole_share,
    key,
)
from nested_reft.config.study import Run, Study
from nested_reft.config.templates import TEMPLATES
from nested_reft.mitigation import MITIGATIONS


class PrepareBenchmarks(Section):
    """Settings of `prepare benchmarks`."""

    benchmarks: dict[Name, BenchmarkSource]


class PrepareDataset(Section):
    """Settings of `prepare dataset`."""

    dataset: DatasetSource
    decontamination: Decontamination


class Warmup(Section):
    """One SFT warm-up. All runs of a (model, dataset, seed) start from the same warm-up."""

    model: str
    dataset: str
    seed: int


class SftStage(Section):
    """Settings of `sft`."""

    run: Warmup
    sft: Sft
    prompt: Prompt


class TrainStage(Section):
    """Settings of `train`."""

    run: Run
    training: Training
    nesting: Nesting
    prompt: Prompt

    @model_validator(mode="after")
    def groups_divide(self) -> "TrainStage":
        """Refuse what the study refuses."""
        check_whole_share(self.nesting, self.training)
        return self


class EvaluateStage(Section):
    """Settings of `evaluate`. `run` identifies the model: its product (pretrained, sft or train) and its axes."""

    run: dict[str, str]
    evaluation: Evaluation
    prompt: Prompt


# The keys of `training` that the time of a roll-out depends on. The learning rate, for example, is not among them.
ROLLOUT_KEYS = ("sampler", "dtype", "sampling_dtype", "num_generations", "max_completion_length", "lora")


class MeasuredModel(Section):
    """The model whose roll-outs are timed."""

    model: str


class MeasureSpeedStage(Section):
    """Settings of `measure-speed`: what the time of a roll-out depends on."""

    run: MeasuredModel
    skip_ratios: list[float]
    border: int
    rounds: int
    sampler: Sampler
    dtype: Dtype
    sampling_dtype: Dtype | None
    prompts: int
    num_generations: int
    max_completion_length: int
    lora: Lora | None
    prompt: Prompt


def settings_of(study: Study, stage: str, axes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stage of a study gets as its settings.

    Args:
        study: the configuration of the study.
        stage: `sft`, `train`, `evaluate` or `measure_speed`.
        axes: the place of the product in the grid; for `evaluate`, the kind of the product (`product`) and its place.
    """
    training = study.training
    sections: dict[str, dict[str, Any]] = {
        "sft": {"sft": study.sft},
        "train": {"training": training, "nesting": study.nesting},
        "evaluate": {"evaluation": study.evaluation},
        "measure_speed": {
            "skip_ratios": study.grid.skip_ratio,
            "border": min(study.grid.border),
            "rounds": study.analysis.speed_rounds,
            "prompts": training.prompts_per_generation,
            **{name: getattr(training, name) for name in ROLLOUT_KEYS},
        },
    }
    run = {axis: str(value) for axis, value in axes.items()}
    return {"run": run, **sections[stage], "prompt": study.prompt}


class NestedSampling(Section):
    """The settings that `diagnose` and `gradients` share: how completions are sampled from nested models."""

    skip_ratios: list[Annotated[float, Field(ge=0, lt=1)]] = key(
        [0.05, 0.10, 0.15], "Skip ratios to compare.", min_length=1
    )
    border: int = key(1, "b: only the layers i with b <= i < N-b can be skipped.", ge=1)
    max_completion_length: int = key(256, "Largest length of a completion in tokens.", ge=1)
    fixed_length: bool = key(True, "Whether the EOS tokens are banned, as in training.")
    batch_size: int = key(16, "Sequences that are sampled and scored at once.", ge=1)
    temperature: float = key(1.0, "Sampling temperature.", gt=0)
    sampler: Sampler = key("engine", "Sampler of the completions, as in training.")
    template: Template = key(
        "qwen-math", f"Prompt template: {', '.join(TEMPLATES)}, or the path of a text file with {{problem}}."
    )
    dtype: Dtype = key("float32", "Data type of the weights.")
    seed: Seed = key(0, "Seed of the skipped layers and of the samples.")


class DiagnosisSettings(NestedSampling):
    """Settings of `diagnose`; each key but `skip_ratios` is an option of the command."""

    num_prompts: int = key(32, "Number of problems, taken from the start of the data.", ge=1)
    num_generations: int = key(4, "Completions per problem for each draw of skipped layers.", ge=1)
    num_draws: int = key(4, "Draws of skipped layers per ratio.", ge=1)


class CalibrationSettings(NestedSampling):
    """Settings of the calibration of the strategies that choose layers by their effect."""

    num_prompts: int = key(16, "Number of prompts, drawn from the training set; each gets one completion.", ge=1)
    num_sets: int = key(4, "Sets of layers of each size whose overlap is measured.", ge=1)


class GradientSettings(NestedSampling):
    """Settings of `gradients`; each key but the three lists is an option of the command."""

    mitigations: list[Mitigation] = key(list(MITIGATIONS), "Mitigations to compare.", min_length=1)
    ratio_levels: list[RatioLevel] = key(
        ["token"], "Levels of the importance ratio, for the mitigations that read one.", min_length=1
    )
    num_batches: int = key(
        32, "Batches of each arm. A second start with a larger number goes on with those that are missing.", ge=4
    )
    prompts_per_batch: int = key(8, "Problems of a batch, drawn from all problems of the data.", ge=1)
    num_generations: int = key(8, "G: completions per problem.", ge=2)
    reference_groups: int = key(4, "Groups of G completions per problem in a batch of the on-policy reference.", ge=1)
    scale_rewards: Literal["group", "batch", "none"] = key(
        "group", "The set of rewards whose standard deviation normalizes the advantage, as in training.", "TRL"
    )
    share_prompts: bool = key(
        False, "Whether an update reads each prompt once for all of its completions, as `training.share_prompts`."
    )
    sketch_dimension: int = key(2**14, "Numbers that are kept of each gradient.", ge=2)
