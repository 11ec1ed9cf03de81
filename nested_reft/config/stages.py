"""The settings of each stage, which Snakemake passes to it as JSON."""

from nested_reft.config.sections import (
    BenchmarkSource,
    DatasetSource,
    Decontamination,
    Evaluation,
    Name,
    Nesting,
    Prompt,
    Section,
    Sft,
    Training,
)
from nested_reft.config.study import Run


class PrepareBenchmarks(Section):
    """Settings of `prepare benchmarks`."""

    benchmarks: dict[Name, BenchmarkSource]


class PrepareDataset(Section):
    """Settings of `prepare dataset`."""

    dataset: DatasetSource
    decontamination: Decontamination


class Warmup(Section):
    """One SFT warm-up: what ten runs start from."""

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


class EvaluateStage(Section):
    """Settings of `evaluate`. `run` names the product that is evaluated: a pretrained model, a warm-up or a run."""

    run: dict[str, str]
    evaluation: Evaluation
    prompt: Prompt
