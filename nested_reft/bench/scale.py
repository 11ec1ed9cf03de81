"""The speed of everything that grows with the number of runs: the plan, the status, the report and the MLflow store.

A synthetic study has the shape of the paper's study: per seed 6 warm-ups and 60 trainings, evaluated on 5 benchmarks.
Its files are copies of those of a real, finished study, with other axes and random answers; no model is trained.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nested_reft.bench.harness import run_process
from nested_reft.config import layout
from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.nesting import num_skipped
from nested_reft.records.files import output_checksums, read_json, read_rows, write_json, write_rows
from nested_reft.records.provenance import collect_provenance

RUNS_PER_SEED = 60  # 2 models x 3 datasets x (the baseline + 3 skip ratios x 3 mitigations)
BENCHMARKS = 5
ROOT = Path(__file__).parents[2]


class Template(NamedTuple):
    """The folders of one product of each kind in a finished study."""

    pretrained: Path
    training: Path
    warm_up: Path
    evaluation: Path


class Measured(NamedTuple):
    """One command on one synthetic study."""

    runs: int
    command: str
    seconds: float
    cpu_seconds: float  # of the command and its children; less than `seconds` on a busy machine
    peak_gib: float


def find_template(study: Study, directory: Path) -> Template:
    """Return the folders of a pretrained model, of a training with skipped layers, of a warm-up and of an evaluation.

    Raises:
        UserError: if the study is not finished in this directory.
    """
    results = directory / layout.RESULTS.format(study=study.study)
    paths = [path for path, product in layout.products(study) if product.get("skip_ratio")]
    sft = [path for path, product in layout.products(study) if product["product"] == "sft"]
    if not paths or not sft or not (results / "evaluate" / paths[0] / "run.json").exists():
        raise UserError(
            f"{results} holds no finished study {study.study!r} with a warm-up; run the study, for example "
            "config/smoke.yaml, in this folder first"
        )
    pretrained = results / layout.PRETRAINED.format(model=study.grid.model[0])
    return Template(pretrained, results / paths[0], results / sft[0], results / "evaluate" / paths[0])


def synthetic_study(study: Study, seeds: int, problems: int) -> Study:
    """Return a study of the paper's shape with the given number of seeds, whose models and data are embedded ones."""
    content = study.model_dump(mode="json")
    models, datasets = [f"model-{i}" for i in range(2)], [f"dataset-{i}" for i in range(3)]
    content |= {
        "study": "scale",
        "models": {name: {"path": "embedded/tiny-28"} for name in models},
        "datasets": {name: {"path": "embedded/mixed", "size": 16} for name in datasets},
        "benchmarks": {f"benchmark-{i}": {"path": "embedded/algebra", "size": problems} for i in range(BENCHMARKS)},
    }
    content["grid"] = {
        "model": models,
        "dataset": datasets,
        "skip_ratio": [0.05, 0.1, 0.15],
        "mitigation": ["base", "practical", "retrace"],
        "seed": list(range(seeds)),
    }
    content["analysis"]["speed_rounds"] = 0
    return parse_settings(Study, content)


def evaluation_records(template: pd.DataFrame, problems: int, seed: int) -> pd.DataFrame:
    """Return the records of an evaluation on all benchmarks: rows of the template with random verdicts."""
    count = BENCHMARKS * problems
    records = template.iloc[np.arange(count) % len(template)].reset_index(drop=True)
    return records.assign(
        benchmark=[f"benchmark-{i}" for i in range(BENCHMARKS) for _ in range(problems)],
        problem_id=list(range(problems)) * BENCHMARKS,
        sample=0,
        correct=np.random.default_rng(seed).random(count) < 0.5,
    )


def evaluation_metrics(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of an evaluation, with those of the template's first benchmark for each benchmark."""
    first = next(name.split("/")[1] for name in template if name.startswith("eval/"))
    others = {name: value for name, value in template.items() if not name.startswith(f"eval/{first}/")}
    copied = {
        name.replace(f"eval/{first}/", f"eval/benchmark-{i}/"): value
        for name, value in template.items()
        for i in range(BENCHMARKS)
        if name.startswith(f"eval/{first}/")
    }
    return others | copied


def write_results(study: Study, template: Template, directory: Path, steps: int, problems: int) -> None:
    """Write the files that a report reads: records, metrics and steps of every product.

    Args:
        study: the synthetic study.
        template: the files to copy.
        directory: the working directory of the synthetic study.
        steps: optimizer steps per training and warm-up.
        problems: problems per benchmark.
    """
    results = directory / layout.RESULTS.format(study=study.study)
    records = pd.read_parquet(template.evaluation / "records.parquet")
    metrics = evaluation_metrics(read_json(template.evaluation / "metrics.json"))
    of_kind = {"train": template.training, "sft": template.warm_up}
    rows = {kind: read_rows(folder / "metrics.jsonl") for kind, folder in of_kind.items()}
    for number, (path, product) in enumerate(layout.products(study)):
        axes = {axis: value for axis, value in product.items() if axis != "product"}
        kind = product["product"]
        if kind in of_kind:
            folder = results / path
            folder.mkdir(parents=True)
            write_rows(
                folder / "metrics.jsonl", [rows[kind][i % len(rows[kind])] | {"step": i + 1} for i in range(steps)]
            )
            shutil.copy(of_kind[kind] / "metrics.json", folder / "metrics.json")
            write_run(of_kind[kind], folder, axes)
        else:
            shutil.copytree(template.pretrained, results / path)
        folder = results / "evaluate" / path
        folder.mkdir(parents=True)
        evaluation_records(records, problems, number).to_parquet(folder / "records.parquet", index=False)
        write_json(folder / "metrics.json", metrics)
        write_run(template.evaluation, folder, product)


def write_run(template: Path, folder: Path, run: Mapping[str, Any]) -> None:
    """Write run.json: that of the template with other axes, its own identity and the checksums of the folder."""
    record = read_json(template / "run.json")
    record |= {"run": run, "study": "scale", "uid": f"{folder}@{record['started']}"}
    if "num_layers" in record:
        record["num_skipped"] = num_skipped(record["num_layers"], run["skip_ratio"])
    record["outputs"] = output_checksums(folder)
    write_json(folder / "run.json", record)


def measure(runs: int, name: str, command: list[str], directory: Path) -> Measured:
    """Run a command in the folder of a synthetic study, and return its row of the table."""
    usage = run_process(command, directory)
    return Measured(runs, name, usage.seconds, usage.cpu_seconds, usage.peak_bytes / 2**30)


def measure_runs(
    study: Study, template: Template, runs: int, steps: int, problems: int, store: bool, folder: Path
) -> Iterator[Measured]:
    """Write a synthetic study of this many runs, and measure each command on it.

    Args:
        study: the finished study.
        template: its files.
        runs: the number of trainings, a multiple of 60.
        steps: optimizer steps per training.
        problems: problems per benchmark.
        store: whether to fill an MLflow store with all runs, too, which takes longest.
        folder: an empty folder.
    """
    synthetic = synthetic_study(study, runs // RUNS_PER_SEED, problems)
    file = folder / "scale.yaml"
    file.write_text(canonical(synthetic))  # JSON is YAML
    snakemake, ours = (str(Path(sys.executable).parent / name) for name in ("snakemake", "nested-reft"))
    plan = [snakemake, "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--configfile", str(file)]
    yield measure(runs, "snakemake -n", [*plan, "-n", "--quiet", "all"], folder)
    write_results(synthetic, template, folder, steps, problems)
    results, reports = folder / "results", folder / "reports"
    yield measure(runs, "nested-reft status", [ours, "status", str(file)], folder)
    arguments = ["--settings", str(file), "--results", str(results / "scale"), "--out", str(reports / "scale")]
    yield measure(runs, "nested-reft analyse", [ours, "analyse", *arguments], folder)
    if store:
        yield measure(runs, "nested-reft track", [ours, "track"], folder)
        yield measure(runs, "MLflow: first page of runs", [sys.executable, "-c", FIRST_PAGE, str(folder)], folder)


# What the page of runs of `mlflow ui` asks of the store, in a process of its own.
FIRST_PAGE = """
import sys
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}/results/mlflow.db")
experiment = client.get_experiment_by_name("scale")
assert len(client.search_runs([experiment.experiment_id], max_results=100, order_by=["start_time DESC"])) > 0
"""


def measure_scale(
    study: Study, directory: Path, runs: Sequence[int], steps: int, problems: int, store: bool
) -> dict[str, Any]:
    """Measure every command at every number of runs, each once, and return the table and what it was measured on."""
    template = find_template(study, directory)
    measured: list[Measured] = []
    for number in runs:
        with tempfile.TemporaryDirectory(prefix="nested-reft-scale-") as folder:
            measured += measure_runs(study, template, number, steps, problems, store, Path(folder))
    return {
        "bench": "scale",
        "steps": steps,
        "problems": problems,
        "provenance": collect_provenance(),
        "measured": [row._asdict() for row in measured],
    }
