"""Four more source files of a report: SFT losses, token weights, sampled answers and the measured speed.

    sft_steps.csv        a row per SFT model and optimizer step: its loss
    token_weights.csv    a row per run and bin: the number of sampled tokens whose weight h(r) is in the bin
    sampled_answers.csv  a row per cell and problem: the completions of three models, shortened
    speed_rounds.csv     a row per model, round and number of layers skipped: the seconds of a roll-out

Reports of earlier versions lack these files. Figures that need them are then left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nested_reft.config.layout import MEASURE_SPEED, PRETRAINED, products
from nested_reft.config.study import Study
from nested_reft.off_policy_metrics import WEIGHT_BINS
from nested_reft.records.files import check_outputs, checksums, read_rows, read_versioned_json
from nested_reft.report.statistics import Floats

SFT_STEPS = ["model", "dataset", "seed", "step", "loss"]
# In the rows of a measurement of speed: the seconds of a roll-out that skips this number of layers.
MEASURED_SECONDS = re.compile(r"seconds/(\d+)_skipped")
NUM_ANSWERS = 20  # in one report, spread over its cells
SHOWN_LENGTH = 200  # characters of a completion


class Details(NamedTuple):
    """The four tables; a table is empty where the study has no such data."""

    sft_steps: pd.DataFrame
    token_weights: pd.DataFrame
    sampled_answers: pd.DataFrame
    speed_rounds: pd.DataFrame


def sft_steps(study: Study, results: Path) -> Iterator[pd.DataFrame]:
    """Yield the loss of every SFT model by step."""
    for path, product in products(study):
        file = results / path / "metrics.jsonl"
        if product["product"] == "sft" and file.exists():
            losses = pd.DataFrame(read_rows(file))[["step", "loss"]]
            yield losses.assign(**{axis: product[axis] for axis in ("model", "dataset", "seed")})[SFT_STEPS]


def token_weights(runs: Iterable[tuple[Mapping[str, Any], Floats | None]]) -> pd.DataFrame:
    """Return the number of tokens in each bin of weights of every run, summed over its steps."""
    counted = [(product, counts) for product, counts in runs if counts is not None]
    axes = pd.DataFrame([product for product, _ in counted]).drop(columns="product", errors="ignore")
    table = axes.loc[axes.index.repeat(len(WEIGHT_BINS))].reset_index(drop=True)
    tokens = [number for _, counts in counted for number in counts]
    return table.assign(weight=np.tile(WEIGHT_BINS, len(counted)), tokens=tokens)


def shortened(completion: str) -> str:
    """Return a completion in one line; of a long one its end, which holds the answer."""
    line = " ".join(completion.split())
    return line if len(line) <= SHOWN_LENGTH else f"… {line[-SHOWN_LENGTH:]}"


def answers_of(folder: Path, name: str) -> pd.DataFrame:
    """Return the first completion of each problem, and whether it is right, as columns of the given name."""
    records = pd.read_parquet(folder / "records.parquet")
    first = records[records["sample"] == 0].set_index(["benchmark", "problem_id"])
    return pd.DataFrame({name: first["completion"].map(shortened), f"{name}_correct": first["correct"]})


def sampled_answers(study: Study, results: Path) -> Iterator[pd.DataFrame]:
    """Yield for each cell what its SFT model, its baseline and its last instance answer to the same problems.

    Without SFT, the pretrained model takes the place of the SFT model. The models are those of the first seed. The
    problems are spaced evenly over all benchmarks.
    """
    trained: dict[tuple[str, str], dict[str, Path]] = {}  # cell -> name of a column -> folder of the evaluation
    for path, product in products(study):
        if product["product"] == "pretrained" or product["seed"] != study.grid.seed[0]:
            continue
        skips_layers = product["product"] == "train" and product["skip_ratio"] > 0
        name = "instance" if skips_layers else {"sft": "sft", "train": "baseline"}[product["product"]]
        cell = trained.setdefault((product["model"], product["dataset"]), {})
        cell[name] = results / "evaluate" / path
    for (model, dataset), folders in trained.items():
        folders.setdefault("sft", results / "evaluate" / PRETRAINED.format(model=model))
        if not all((folder / "records.parquet").exists() for folder in folders.values()):
            continue
        problems = pd.read_parquet(folders["baseline"] / "records.parquet")
        if "problem" not in problems:
            continue
        problems = problems[problems["sample"] == 0].set_index(["benchmark", "problem_id"])[["problem", "answer"]]
        number = min(len(problems), -(-NUM_ANSWERS // len(trained)))
        chosen = problems.iloc[np.linspace(0, len(problems) - 1, number).round().astype(int)]
        given = chosen.assign(answer=chosen["answer"].map(lambda right: ", ".join(map(str, right))))
        for name in ("sft", "baseline", "instance"):
            given = given.join(answers_of(folders[name], name))
        yield given.reset_index().assign(model=model, dataset=dataset)


ANSWERS = ["model", "dataset", "benchmark", "problem_id", "problem", "answer"]
ANSWERS += [f"{name}{suffix}" for name in ("sft", "baseline", "instance") for suffix in ("", "_correct")]


SPEED = ["model", "sampler", "device", "threads", "num_layers", "layer_parameters", "lm_head_parameters"]
SPEED += ["completion_tokens", "prompt_tokens", "round", "num_skipped", "seconds"]


def measured_speed(study: Study, results: Path) -> Iterator[pd.DataFrame]:
    """Yield the seconds of every roll-out in the measurement of each model's speed."""
    for model in study.grid.model:
        folder = results / MEASURE_SPEED.format(model=model)
        if not study.analysis.speed_rounds or not (folder / "run.json").exists():
            continue
        check_outputs(folder, checksums(folder, "metrics.json", "metrics.jsonl"))
        record, metrics = read_versioned_json(folder / "run.json"), read_versioned_json(folder / "metrics.json")
        facts = {name: record[name] for name in SPEED if name in record}
        facts |= {"model": model, "completion_tokens": int(metrics["completion_tokens"])}
        yield pd.DataFrame(
            facts
            | {
                "prompt_tokens": row["prompt_tokens"],
                "round": row["step"],
                "num_skipped": int(match[1]),
                "seconds": seconds,
            }
            for row in read_rows(folder / "metrics.jsonl")
            for name, seconds in row.items()
            if (match := MEASURED_SECONDS.fullmatch(name))
        )


def table(frames: Iterable[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Return the frames as one table, which has these columns even without any frame."""
    return pd.concat([pd.DataFrame(columns=columns), *frames], ignore_index=True)[columns]


def collect_details(study: Study, results: Path, runs: Iterable[tuple[Mapping[str, Any], Floats | None]]) -> Details:
    """Read the losses and answers of a study from the files that the stages wrote.

    Args:
        study: the configuration.
        results: the folder that the stages wrote into.
        runs: the axes of each training run, and the sampled tokens per bin of weights, summed over its steps.
    """
    axes = ["model", "dataset", *(axis for axis in study.grid.model_dump() if axis not in ("model", "dataset"))]
    return Details(
        table(sft_steps(study, results), SFT_STEPS),
        table([token_weights(runs)], [*axes, "weight", "tokens"]),
        table(sampled_answers(study, results), ANSWERS),
        table(measured_speed(study, results), SPEED),
    )


def write_details(details: Details, folder: Path) -> None:
    """Write the four files."""
    for name, rows in details._asdict().items():
        rows.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def read_details(folder: Path) -> Details:
    """Read what `write_details` wrote; a file that an older report lacks gives an empty table."""
    files = {name: folder / f"{name}.csv" for name in Details._fields}
    return Details(**{name: pd.read_csv(file) if file.exists() else pd.DataFrame() for name, file in files.items()})
