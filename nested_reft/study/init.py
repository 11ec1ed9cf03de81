"""The command `init`: a study of one's own, from models and data, as a commented YAML file.

The file holds what one usually changes, with values for this machine (with or without a GPU), for the models (the
embedded models need large learning rates) and for the data (the length of its solutions).
"""

import math
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from nested_reft.config.mirror import HUB_NAME, mirrored
from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import (
    BenchmarkSource,
    DatasetSource,
    Decontamination,
    ModelSource,
    Training,
    local_folder,
)
from nested_reft.config.study import Study, expand_grid
from nested_reft.config.templates import TEMPLATES as PROMPT_TEMPLATES
from nested_reft.data.decontamination import contaminated, duplicates_and_contradictions
from nested_reft.data.formats import FORMATS, benchmark_row, training_row
from nested_reft.data.prepare import with_box, without
from nested_reft.data.sources import Row, load_rows, parsed_rows
from nested_reft.errors import UserError
from nested_reft.mitigation import MITIGATIONS
from nested_reft.records.files import write_rows
from nested_reft.study.check import describe_download

# Without a benchmark, every fifth problem is held out as one, up to 200 problems.
HELD_OUT_EVERY, HELD_OUT_AT_MOST = 5, 200
# Rows of the embedded data sets, which are generated and have no last row.
EMBEDDED_ROWS, EMBEDDED_PROBLEMS = 480, 200
# Solutions whose length is measured.
MEASURED_SOLUTIONS = 500
# Values of decontamination.ngram to choose from. Problems that are made from templates share sentences: the value is
# raised from the default while it drops more than this share of the training problems.
NGRAMS = (Decontamination().ngram, 15, 20, 25)
LARGEST_DROPPED_SHARE = 0.1


class Problems(NamedTuple):
    """A training set or a benchmark: its name and entry in the configuration, and its rows as the stages read them."""

    name: str
    entry: dict[str, Any]
    rows: list[Row]


class Plan(NamedTuple):
    """A study that is ready to be written."""

    path: Path
    text: str
    new_files: list[Problems]  # the two parts of a training set of which problems are held out
    findings: list[str]  # what was found in the data and on this machine, as lines of text


def flow(value: Any) -> str:
    """Return a value in YAML's flow style, on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).removesuffix("...\n").strip()
    )


TEMPLATES = Environment(
    loader=PackageLoader("nested_reft.study"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["flow"] = flow


def names_of(paths: list[str]) -> list[str]:
    """Return a name for each model or data set: the last part of its path, or the last two if names would repeat."""
    parts = [[part for part in re.sub(r"\.jsonl?$", "", path).split("/") if part.strip(".")] for path in paths]
    lasts = [names[-1] for names in parts]
    chosen = lasts if len(set(lasts)) == len(lasts) else ["-".join(names[-2:]) for names in parts]
    return [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "mine" for name in chosen]


def read_training_set(path: str) -> tuple[Problems, str]:
    """Return the training set, and the columns by which its format was recognized.

    Args:
        path: a file, a folder, a name on the hub, or `embedded/<name>`.

    Raises:
        UserError: the path leads to no data, or one of the rows cannot be read.
    """
    entry = {"path": path} | ({"size": EMBEDDED_ROWS} if path.startswith("embedded/") else {})
    source: DatasetSource = parse_settings(DatasetSource, entry, lambda key: "--data")
    rows = parsed_rows(source, training_row)
    columns = load_rows(source)[0].keys()
    name = next(name for name, known in FORMATS.items() if columns >= set(known.columns))
    return Problems(names_of([path])[0], entry, rows), f"{', '.join(FORMATS[name].columns)} (format {name})"


def read_benchmark(name: str, path: str) -> Problems:
    """Return a benchmark.

    Raises:
        UserError: the path leads to no data, or one of the rows cannot be read.
    """
    entry = {"path": path} | ({"size": EMBEDDED_PROBLEMS} if path.startswith("embedded/") else {})
    source: BenchmarkSource = parse_settings(BenchmarkSource, entry, lambda key: "--benchmark")
    return Problems(name, entry, parsed_rows(source, benchmark_row))


def hold_out(data: Problems, folder: Path) -> tuple[Problems, Problems]:
    """Return a training set without duplicates and contradictions in two parts: a training set and a benchmark.

    Args:
        data: the whole training set.
        folder: the folder that the two parts will be written to.

    Raises:
        UserError: there are too few rows.
    """
    rows = without(data.rows, duplicates_and_contradictions(data.rows))
    if len(rows) < 2 * HELD_OUT_EVERY:
        raise UserError(
            f"--data {data.entry['path']} has {len(rows)} different problems, too few to hold out some as a "
            "benchmark; add problems, or give others by --benchmark"
        )
    held_out = rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY][:HELD_OUT_AT_MOST]
    return (
        Problems(data.name, {"path": str(folder / "train.jsonl")}, without(rows, held_out)),
        Problems(f"{data.name}-held-out", {"path": str(folder / "test.jsonl")}, held_out),
    )


def choose_ngram(data: Problems, benchmarks: list[Problems]) -> tuple[int, int]:
    """Return a value for decontamination.ngram, and the number of training problems that it drops."""
    tests = [{"benchmark": one.name, "problem": row["problem"]} for one in benchmarks for row in one.rows]
    dropped = {ngram: len(contaminated(data.rows, tests, ngram)) for ngram in NGRAMS}
    few = [ngram for ngram in NGRAMS if dropped[ngram] <= LARGEST_DROPPED_SHARE * len(data.rows)]
    ngram = few[0] if few else NGRAMS[0]
    return ngram, dropped[ngram]


def longest_solution(models: list[ModelSource], data: Problems) -> int | None:
    """Return the length of the longest solution in tokens, or None if all models are still on the hub.

    A solution includes the box with the answer, which the preparation of the data adds.

    Raises:
        UserError: a model has no tokenizer.
    """
    from nested_reft.model.loading import load_tokenizer

    texts = [with_box(row["solution"], row["answer"]) for row in data.rows[:MEASURED_SOLUTIONS]]
    folders = [model.local_path for model in models if model.local_path is not None]
    tokenizers = [load_tokenizer(folder) for folder in folders]
    return max((len(ids) for tokenizer in tokenizers for ids in tokenizer(texts)["input_ids"]), default=None)


def plan_study(study: str, models: list[str], data: str, benchmarks: list[str], has_gpu: bool) -> Plan:
    """Read the models and the data, and return the study. Nothing is written.

    Args:
        study: the name of the study.
        models: the paths of the models.
        data: the path of the training set.
        benchmarks: the paths of the benchmarks; without one, problems of the training set are held out.
        has_gpu: whether this machine has a GPU.

    Raises:
        UserError: the study would not be valid, for example because a row cannot be read or a model has few layers.
    """
    if study.endswith((".yaml", ".yml")):
        raise UserError(f"the name of the study is {study!r}; leave the suffix out, because a name also names folders")
    for option, paths in (("--model", models), ("--benchmark", benchmarks)):
        if repeated := [one for one in paths if paths.count(one) > 1]:
            raise UserError(f"{option} {repeated[0]} is given twice; give it once")
    sources: list[ModelSource] = [parse_settings(ModelSource, {"path": one}, lambda key: "--model") for one in models]
    for named in (*models, data, *benchmarks):
        is_embedded = named.startswith("embedded/")
        if HUB_NAME.fullmatch(named) and not is_embedded and (local_folder(named) or mirrored(named)) is None:
            describe_download(named)  # refuses a mistyped path, which would be looked up on the hub for half a minute
    training_set, columns = read_training_set(data)
    findings = [f"Training set {data}: {len(training_set.rows)} rows with the columns {columns}. The first row:"]
    findings += show(training_set.rows[0])
    new_files: list[Problems] = []
    if not benchmarks and data.startswith("embedded/"):
        benchmarks = [data]  # its benchmark has other problems than its training set
    tests = [read_benchmark(name, path) for name, path in zip(names_of(benchmarks), benchmarks, strict=True)]
    for test in tests:
        findings += [f"Benchmark {test.entry['path']}: {len(test.rows)} problems. The first:", *show(test.rows[0])]
    if not tests:
        training_set, held_out = hold_out(training_set, Path("data") / study)
        new_files, tests = [training_set, held_out], [held_out]
        findings.append(
            f"No benchmark was given: {len(held_out.rows)} problems are held out in {held_out.entry['path']}, and "
            f"{len(training_set.rows)} remain to train on in {training_set.entry['path']}."
        )

    ngram, num_dropped = choose_ngram(training_set, tests)
    findings.append(
        f"Training problems that share {ngram} words in a row with a benchmark, and are left out: {num_dropped}."
    )
    longest, default = longest_solution(sources, training_set), Training().max_completion_length
    length = default if longest is None else min(default, 8 * math.ceil(longest / 8))
    if longest is not None:
        findings.append(f"The longest solution has {longest} tokens; completions in training get {length}.")
    findings.append(f"This machine has {'a GPU' if has_gpu else 'no GPU, so the study is set to run on the CPU'}.")

    path = (Path("config") if Path("config").is_dir() else Path()) / f"{study}.yaml"
    text = TEMPLATES.get_template("study.yaml.j2").render(
        file=path,
        schema=(path.parent / "schema.json").exists(),
        study=study,
        models=dict(zip(names_of(models), models, strict=True)),
        data=training_set,
        benchmarks=tests,
        held_out=bool(new_files),
        mitigations=list(MITIGATIONS),
        templates=list(PROMPT_TEMPLATES),
        ngram=ngram,
        has_gpu=has_gpu,
        is_embedded=all(source.is_embedded for source in sources),
        max_completion_length=length,
    )
    settings = yaml.safe_load(text)
    if new_files:  # they do not exist yet, and the check of the study looks for them
        for entry in (settings["datasets"][training_set.name], settings["benchmarks"][tests[0].name]):
            entry["path"] = data
    parsed: Study = parse_settings(Study, settings)
    if (left := len(training_set.rows) - num_dropped) < parsed.training.prompts_per_generation:
        raise UserError(
            f"--data {data} has {left} problems that do not also occur in a benchmark, fewer than the "
            f"{parsed.training.prompts_per_generation} of a training step; give more problems, or another benchmark"
        )
    num_trainings = len(expand_grid(parsed))
    findings.append(f"The study has {num_trainings} trainings.")
    return Plan(path, text, new_files, findings)


def show(row: Row) -> list[str]:
    """Return a row as lines, one per column, each shortened to a line of 100 characters."""
    shown = {column: row[column] for column in ("problem", "solution", "answer") if column in row}
    texts = {name: " or ".join(value) if isinstance(value, list) else value for name, value in shown.items()}
    return [f"  {name:10}{textwrap.shorten(text, 88, placeholder=' ...')}" for name, text in texts.items()]


def write_study(plan: Plan, replace: bool) -> None:
    """Write the files of a study; the YAML file is the last.

    Args:
        plan: the study.
        replace: whether files that exist are replaced.

    Raises:
        UserError: a file exists and must not be replaced.
    """
    files = [plan.path, *(Path(part.entry["path"]) for part in plan.new_files)]
    for file in files:
        if file.exists() and not replace:
            raise UserError(f"{file} exists already; choose another name for the study, or replace it by --force")
    for part in plan.new_files:
        file = Path(part.entry["path"])
        file.parent.mkdir(parents=True, exist_ok=True)
        write_rows(file, [{name: row[name] for name in ("problem", "solution", "answer")} for row in part.rows])
    plan.path.with_suffix(".yaml.part").write_text(plan.text)
    plan.path.with_suffix(".yaml.part").replace(plan.path)
