"""The paths of a study's products. The rules, the report and the tests take all paths from this module.

A path is a template with the axes of the grid in braces. Snakemake reads it as a pattern with wildcards, and
`str.format` fills it in for one run.
"""

from collections.abc import Iterator
from typing import Any

from nested_reft.config.sections import local_folder
from nested_reft.config.study import RUN, Study, expand_grid

# The folders of a study, relative to the working directory: its products, its report, the logs of its jobs, and the
# tables with the run time and the memory of each job, which Snakemake writes.
RESULTS = "results/{study}"
REPORTS = "reports/{study}"
LOGS = "logs/{study}"
TIMES = "benchmarks/{study}"

# Below the results: the prepared data.
BENCHMARKS = "data/benchmarks.jsonl"
DATASET = "data/dataset~{dataset}/train.jsonl"

# Below the results: the three products that are evaluated. A pretrained model is a note with the path of its weights.
PRETRAINED = "pretrained/model~{model}"
SFT = "sft/model~{model}/dataset~{dataset}/seed~{seed}"
TRAIN = "/".join(["train", *(f"{axis}~{{{axis}}}" for axis in RUN)])

# Below the results: the speed of the roll-outs of a model.
MEASURE_SPEED = "measure_speed/model~{model}"

# Below the results: the evaluation of a product, where {product} is one of the three paths above.
EVALUATE = "evaluate/{product}"

# Below the report: the sources, from which everything else is made, then the tables and figures.
SOURCES = ("results.csv", "problem_scores.parquet", "steps.csv", "config.json", "provenance.json")
# More sources, which reports of earlier versions lack.
DETAILS = ("sft_steps.csv", "token_weights.csv", "sampled_answers.csv", "speed_rounds.csv")
TABLES = (
    "table1",
    "table2",
    "table2_paper",
    "trend",
    "strategy_counts",
    "stages",
    "answers",
    "deltas",
    "mcnemar",
    "noise",
    "speed",
    "speed_slope",
    "efficiency",
    "config",
    "provenance",
)
FIGURES = (
    "forest",
    "heat_map",
    "frontier",
    "accuracy_time",
    "benchmarks",
    "speed_up",
    "time_split",
    "reward",
    "reward_cost",
    "layers",
    "off_policy",
    "off_policy_steps",
    "token_weights",
    "sft_stages",
)
PAGE = "report.html"
DATASET_FIGURE = "figure_{dataset}"
CAPTIONS = (*TABLES, *FIGURES, "figure")


def products(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, axes) for every model that the study evaluates: pretrained, after SFT, and trained.

    The product after SFT is a warm-up or a checkpoint of the user. A study without a warm-up does not have it.

    Args:
        study: the configuration of the study.

    Yields:
        The path below the results, and a dict with `product` (pretrained, sft or train) and the axes of the product.
    """
    for model in study.grid.model:
        axes: dict[str, Any] = {"model": model}
        yield PRETRAINED.format(**axes), {"product": "pretrained"} | axes
        if study.sft.num_train_epochs == 0 and study.models[model].sft_checkpoint is None:
            continue
        for dataset, seed in study.datasets_and_seeds():
            axes = {"model": model, "dataset": dataset, "seed": seed}
            yield SFT.format(**axes), {"product": "sft"} | axes
    for run in expand_grid(study):
        yield TRAIN.format(**run.model_dump()), {"product": "train"} | run.model_dump()


def start_of_training(study: Study, model: str, dataset: str, seed: int | str) -> str:
    """Return the model that a training starts from: the warm-up, a checkpoint of the user, or the pretrained model."""
    results = RESULTS.format(study=study.study)
    if study.warms_up(model):
        return f"{results}/{SFT.format(model=model, dataset=dataset, seed=seed)}/model"
    checkpoint = study.models[model].checkpoint(dataset, seed)
    if checkpoint is None:
        return f"{results}/{PRETRAINED.format(model=model)}/model.json"
    return str(local_folder(checkpoint))
