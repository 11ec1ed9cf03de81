"""Benchmarks: completions of every problem, graded, as per-problem records; accuracies with intervals.

The records hold all that a verdict comes from, so that grading can be repeated without the model
(`nested-reft evaluate --regrade`): torch is imported where completions are generated, and only there.
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.grading import grade as grading
from nested_reft.records.files import read_rows, read_versioned_json, write_versioned_json
from nested_reft.records.provenance import collect_provenance
from nested_reft.records.stage_record import StageRecord
from nested_reft.report.sources import problem_scores
from nested_reft.report.statistics import effective_n, pass_at_k, problem_interval, wilson_interval

# Of the intervals among the metrics of a run; those of the report are at `analysis.confidence`.
CONFIDENCE = 0.95


def generate_completions(model_path: str, prompts: list[str], settings: Evaluation) -> tuple[list[str], list[int]]:
    """Return one completion per prompt and its length in tokens; the whole model, no layer skipped."""
    if settings.sampler == "vllm":
        from nested_reft.rollout.vllm import complete

        return complete(model_path, prompts, settings)
    import torch
    from tqdm import tqdm

    from nested_reft.model.loading import end_token_ids, load_model
    from nested_reft.rollout.generate import complete_by_generate
    from nested_reft.rollout.sampler import engine_for
    from nested_reft.rollout.sampling import SamplingParams

    model, tokenizer = load_model(Path(model_path), settings.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    prompt_ids = tokenizer(prompts)["input_ids"]
    sampling = SamplingParams(
        settings.max_new_tokens,
        settings.temperature,
        settings.top_p if settings.temperature > 0 else 1.0,
        eos_token_ids=end_token_ids(model, tokenizer),
    )
    with tqdm(total=len(prompts), unit="completion", disable=not sys.stderr.isatty()) as progress:
        engine = engine_for(model, settings.sampler, prompt_ids, sampling, settings.batch_size)
        if engine is None:
            completions = complete_by_generate(model, tokenizer, prompt_ids, settings, progress.update)
        else:
            completions, _ = engine.sample(
                prompt_ids, sampling, settings.seed, batch_size=settings.batch_size, on_finished=progress.update
            )
    return tokenizer.batch_decode(completions, skip_special_tokens=True), [len(tokens) for tokens in completions]


def grade(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with `extracted`, `correct` and `how`, from `completion` and `answer`."""
    verdicts = [
        grading.grade(text, list(answer))
        for text, answer in zip(records["completion"], records["answer"], strict=True)
    ]
    graded = records.copy()
    for field in ("extracted", "correct", "how"):
        graded[field] = [getattr(verdict, field) for verdict in verdicts]
    return graded


def metrics_of(records: pd.DataFrame) -> dict[str, float]:
    """Return what a run reports of each benchmark and, as their unweighted mean, overall.

    `pass_at_1` is the share of correct completions, with Wilson's interval per benchmark and a bootstrap
    over problems overall; `n` counts problems; `pass_at_k` is unbiased, for k = 2, 4, ... up to the samples
    of a problem; `truncated` is the share that reached the longest length, `mean_length` in tokens, and
    `grading_timeouts` counts the answers that are wrong for taking the grader too long.
    """
    problems = problem_scores(records)
    samples = int(problems["samples"].max())
    metrics: dict[str, float] = {}
    for benchmark, rows in records.groupby("benchmark", sort=False):
        of_benchmark = problems[problems["benchmark"] == benchmark]
        scores = (of_benchmark["num_correct"] / samples).to_numpy()
        low, high = wilson_interval(scores.mean(), effective_n(scores), CONFIDENCE)
        prefix = f"eval/{benchmark}"
        metrics[f"{prefix}/pass_at_1"] = float(scores.mean())
        metrics[f"{prefix}/ci_low"], metrics[f"{prefix}/ci_high"] = low, high
        metrics[f"{prefix}/n"] = len(of_benchmark)
        for power in range(1, samples.bit_length()):
            k = 2**power
            estimates = pass_at_k(of_benchmark["num_correct"], samples, k)
            metrics[f"{prefix}/pass_at_{k}"] = float(estimates.mean())
        metrics[f"{prefix}/truncated"] = float(rows["truncated"].mean())
        metrics[f"{prefix}/mean_length"] = float(rows["length"].mean())
        metrics[f"{prefix}/grading_timeouts"] = int(rows["how"].isin(["timeout", "died"]).sum())
    benchmarks = list(records["benchmark"].unique())
    of_one = [
        name.removeprefix(f"eval/{benchmarks[0]}/") for name in metrics if name.startswith(f"eval/{benchmarks[0]}/")
    ]
    for name in of_one:
        values = [metrics[f"eval/{benchmark}/{name}"] for benchmark in benchmarks]
        metrics[f"eval/overall/{name}"] = (
            sum(values) if name in ("n", "grading_timeouts") else sum(values) / len(values)
        )
    scores = (problems["num_correct"] / samples).to_numpy()
    low, high = problem_interval(scores, problems["benchmark"].to_numpy(str), CONFIDENCE)
    metrics["eval/overall/ci_low"], metrics["eval/overall/ci_high"] = low, high
    return metrics


def write_records(records: pd.DataFrame, folder: Path) -> None:
    """Write `records.parquet` in one piece."""
    records.to_parquet(folder / "records.parquet.part", index=False)
    (folder / "records.parquet.part").replace(folder / "records.parquet")


def evaluate(settings: Evaluation, prompt: Prompt, model_path: str, benchmarks: Path, record: StageRecord) -> None:
    """Run all benchmarks; write `records.parquet` (a row per completion) and the metrics."""
    started = time.perf_counter()
    problems = pd.DataFrame(read_rows(benchmarks))
    problems.insert(1, "problem_id", problems.groupby("benchmark", sort=False).cumcount())
    problems["prompt"] = [format_prompt(problem, prompt.template) for problem in problems["problem"]]
    records = problems.loc[problems.index.repeat(settings.num_samples)].reset_index(drop=True)
    records.insert(2, "sample", records.groupby(["benchmark", "problem_id"], sort=False).cumcount())
    records["completion"], records["length"] = generate_completions(model_path, list(records["prompt"]), settings)
    records["truncated"] = records["length"] >= settings.max_new_tokens
    records = grade(records)
    write_records(records, record.out)
    record.finish(metrics_of(records) | {"evaluation_runtime_s": time.perf_counter() - started})


def regrade(folder: Path) -> int:
    """Grade the records of a finished evaluation again; return how many verdicts changed.

    `records.parquet` and `metrics.json` are written anew, and `run.json` notes by which code.

    Raises:
        UserError: if the folder holds no finished evaluation, or one in a layout that this code does not read.
    """
    if not all((folder / name).exists() for name in ("records.parquet", "metrics.json", "run.json")):
        raise UserError(
            f"{folder} holds no finished evaluation (records.parquet, metrics.json, run.json); "
            "give --out the folder of one, as results/<study>/evaluate/..."
        )
    run, old = (read_versioned_json(folder / name) for name in ("run.json", "metrics.json"))
    before = pd.read_parquet(folder / "records.parquet")
    records = grade(before)
    made_with = collect_provenance()
    note = {
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "git_commit": made_with["git_commit"],
        "git_dirty": made_with["git_dirty"],
        "packages": made_with["packages"],
    }
    write_records(records, folder)
    runtime = {"evaluation_runtime_s": old["evaluation_runtime_s"]}
    write_versioned_json(folder / "metrics.json", metrics_of(records) | runtime)
    write_versioned_json(folder / "run.json", run | {"regraded": note})
    return int((records["correct"] != before["correct"]).sum())
