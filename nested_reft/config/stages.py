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

    cell: Warmup
    sft: Sft
    prompt: Prompt


class TrainStage(Section):
    """Settings of `train`."""

    cell: Run
    training: Training
    nesting: Nesting
    prompt: Prompt


class EvaluateStage(Section):
    """Settings of `evaluate`. The cell has the keys of whatever was produced: a model, a warm-up or a run."""

    cell: dict[str, str]
    evaluation: Evaluation
    prompt: Prompt
