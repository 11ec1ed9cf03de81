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


class EvaluateStage(Section):
    """Settings of `evaluate`. `run` identifies the model: its product (pretrained, sft or train) and its axes."""

    run: dict[str, str]
    evaluation: Evaluation
    prompt: Prompt
