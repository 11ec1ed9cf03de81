"""The stage `evaluate`: completions of every benchmark problem, graded, and accuracies with intervals.

The records hold everything that a grade depends on, so that `nested-reft evaluate --regrade` can grade them again
without the model. Torch is imported only where completions are generated, so that `--regrade` does not load it.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.grading import grade as grading
from nested_reft.processes import gather, merge_shares, num_processes, rank, share_of
from nested_reft.records.files import (
    output_checksums,
    read_rows,
    read_versioned_json,
    write_rows,
    write_versioned_json,
)
from nested_reft.records.progress import completion_row
from nested_reft.records.provenance import collect_provenance
from nested_reft.records.stage_record import StageRecord
from nested_reft.report.clusters import cluster_codes
from nested_reft.report.sources import problem_scores
from nested_reft.report.statistics import accuracy_interval, pass_at_k, problem_interval
from nested_reft.stages.signals import ended_by_signals
from nested_reft.startup import quick_imports

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# An evaluation logs how far it is at most this often.
SECONDS_BETWEEN_ROWS = 10.0
# A batch of completions, which is saved when all of them have ended, fills the rows of the sampler this many times.
# At the end of each batch, rows idle until its last completion has ended.
FILLINGS_PER_BATCH = 32
# Level of the intervals in metrics.json; the report computes its own at `analysis.confidence`.
CONFIDENCE = 0.95


class CompletionLogger:
    """Logs how many completions of this process have ended.

    Args:
        total: the number of completions that this process samples.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.started = self.logged = time.monotonic()

    def count(self, num_finished: int) -> None:
        """Count completions that have just ended; log a row if the last one is old, and after the last completion."""
        self.done += num_finished
        now = time.monotonic()
        if num_finished and (now - self.logged >= SECONDS_BETWEEN_ROWS or self.done == self.total):
            log.info("%s", completion_row(self.done, self.total, now - self.started))
            self.logged = now


class Completions(NamedTuple):
    """The completions of an evaluation, and the sampler that was used, which can be plainer than that of the settings.

    The sampler is None if an earlier version sampled the completions.
    """

    texts: list[str]
    lengths: list[int]  # in tokens
    sampler: str | None


def open_sampler(
    model_path: str, prompts: list[str], settings: Evaluation, batches: Sequence[range]
) -> tuple["PreTrainedTokenizerBase", Callable[[range], list[list[int]]], str]:
    """Load a model; return its tokenizer, a function that samples completions, and the name of the sampler.

    The function samples the completions of a range of the prompts.

    Each rank samples its share of the completions and gets those of all. With an engine, a completion is a function of
    the index of its prompt; `generate` samples from a random state of its own for each range.

    Args:
        model_path: the folder of the model and its tokenizer.
        prompts: the formatted prompts.
        settings: the settings of the evaluation.
        batches: the ranges that will be sampled.
    """
    if settings.sampler == "vllm":
        from nested_reft.rollout.vllm import open_vllm

        return *open_vllm(model_path, prompts, settings), "vllm"
    with quick_imports():
        import torch

        from nested_reft.model.loading import end_token_ids, load_model
        from nested_reft.rollout.generate import complete_by_generate
        from nested_reft.rollout.sampler import engine_for, sampler_name
        from nested_reft.rollout.token_sampling import SamplingParams

    model, tokenizer = load_model(Path(model_path), settings.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    prompt_ids = tokenizer(prompts)["input_ids"]
    sampling = SamplingParams(
        settings.max_new_tokens,
        settings.temperature,
        settings.top_p if settings.temperature > 0 else 1.0,
        eos_token_ids=end_token_ids(model, tokenizer),
    )
    shares = [batch[rank() :: num_processes()] for batch in batches]
    log_finished = CompletionLogger(sum(map(len, shares))).count
    own = share_of(prompt_ids)
    engine = engine_for(model, settings.sampler, own, sampling, settings.batch_size) if own else None

    def complete(batch: range) -> list[list[int]]:
        rows = batch[rank() :: num_processes()]
        own = [prompt_ids[row] for row in rows]
        if not own:  # there are more ranks than completions
            completions = []
        elif engine is None:
            # `generate` samples from the global random state: no two ranks and no two batches of a run share a seed.
            seed = settings.seed * num_processes() + rank() + batch.start
            of_batch = settings.model_copy(update={"seed": seed})
            completions = complete_by_generate(model, tokenizer, own, of_batch, log_finished)
        else:
            completions, _ = engine.sample(
                own,
                sampling,
                settings.seed,
                batch_size=settings.batch_size,
                rows=rows,
                on_finished=log_finished,
            )
        return merge_shares(gather(completions))

    return tokenizer, complete, sampler_name(engine) if own else settings.sampler


def read_completions(folder: Path) -> list[dict[str, Any]]:
    """Return the completions that an earlier attempt has saved: a row each, with `completion` and `length`."""
    rows: list[dict[str, Any]] = []
    while (file := folder / f"completions-{len(rows)}.jsonl").exists():
        rows += read_rows(file)
    return rows


def generate_completions(
    model_path: str, prompts: list[str], settings: Evaluation, folder: Path | None = None
) -> Completions:
    """Return one completion per prompt, sampled without skipping.

    Rounding depends on the completions that are sampled together. They are therefore sampled in batches that depend
    on the settings alone, so that an evaluation that was interrupted gives the same completions.

    Args:
        model_path: the folder of the model and its tokenizer.
        prompts: the formatted prompts; a prompt that occurs n times gets n completions.
        settings: the settings of the evaluation.
        folder: where finished batches are saved, and where those of an earlier attempt are; None saves nothing.
    """
    rows = read_completions(folder) if folder else []
    if rows:
        log.info("%d of %d completions are those of an earlier attempt", len(rows), len(prompts))
    if len(rows) < len(prompts):
        largest = FILLINGS_PER_BATCH * settings.batch_size * num_processes()
        size = math.ceil(len(prompts) / math.ceil(len(prompts) / largest))  # no batch is much smaller than others
        starts = range(len(rows), len(prompts), size)
        batches = [range(start, min(start + size, len(prompts))) for start in starts]
        tokenizer, complete, sampler = open_sampler(model_path, prompts, settings, batches)
        for batch in batches:
            completions = complete(batch)
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            finished = [
                {"completion": text, "length": len(tokens), "sampler": sampler}
                for text, tokens in zip(texts, completions, strict=True)
            ]
            if folder and rank() == 0:
                write_rows(folder / f"completions-{batch.start}.jsonl", finished)
            rows += finished
    # The last row, because an attempt on another machine may have used another sampler for the first ones.
    return Completions([row["completion"] for row in rows], [row["length"] for row in rows], rows[-1].get("sampler"))


def grade_records(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with `extracted`, `correct` and `how`, from `completion` and `answer`."""
    grades = [
        grading.grade(text, list(answer))
        for text, answer in zip(records["completion"], records["answer"], strict=True)
    ]
    graded = records.copy()
    for field in ("extracted", "correct", "how"):
        graded[field] = [getattr(grade, field) for grade in grades]
    return graded


def benchmark_metrics(rows: pd.DataFrame, problems: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of one benchmark, as `evaluation_metrics` describes them.

    Args:
        rows: the graded records of the benchmark.
        problems: a row per problem, with `samples` and `num_correct`.
    """
    samples = int(problems["samples"].max())
    scores = (problems["num_correct"] / samples).to_numpy()
    low, high = accuracy_interval(scores, samples, CONFIDENCE, cluster_codes(problems))
    metrics: dict[str, float] = {"pass_at_1": float(scores.mean()), "ci_low": low, "ci_high": high, "n": len(problems)}
    for power in range(1, samples.bit_length()):
        k = 2**power
        metrics[f"pass_at_{k}"] = float(pass_at_k(problems["num_correct"], samples, k).mean())
    metrics["truncated"] = float(rows["truncated"].mean())
    metrics["mean_length"] = float(rows["length"].mean())
    metrics["grading_timeouts"] = int(rows["how"].isin(["timeout", "died"]).sum())
    return metrics


def evaluation_metrics(records: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of each benchmark, `eval/<benchmark>/...`, and of all together, `eval/overall/...`.

    `pass_at_1` is the share of correct completions, with its interval, `n` the number of problems, `pass_at_k`
    the unbiased estimate for k = 2, 4, ... up to the samples of a problem, `truncated` the share of completions that
    reached `max_new_tokens`, `mean_length` the mean number of tokens, and `grading_timeouts` the number of completions
    that count as wrong because computer algebra took too long or died. `overall` has the sums of `n` and
    `grading_timeouts` over the benchmarks, and unweighted means of the other metrics; its interval is from a bootstrap
    over problems.
    """
    problems = problem_scores(records)
    per_benchmark = {
        str(benchmark): benchmark_metrics(rows, problems[problems["benchmark"] == benchmark])
        for benchmark, rows in records.groupby("benchmark", sort=False)
    }
    metrics = {f"eval/{name}/{key}": value for name, found in per_benchmark.items() for key, value in found.items()}
    for key in next(iter(per_benchmark.values())):
        total = sum(found[key] for found in per_benchmark.values())
        is_count = key in ("n", "grading_timeouts")
        metrics[f"eval/overall/{key}"] = total if is_count else total / len(per_benchmark)
    scores = (problems["num_correct"] / int(problems["samples"].max())).to_numpy()
    benchmarks, clusters = problems["benchmark"].to_numpy(str), cluster_codes(problems)
    low, high = problem_interval(scores, benchmarks, CONFIDENCE, clusters=clusters)
    metrics["eval/overall/ci_low"], metrics["eval/overall/ci_high"] = low, high
    return metrics


def write_records(records: pd.DataFrame, folder: Path) -> None:
    """Write `records.parquet` in one piece."""
    records.to_parquet(folder / "records.parquet.part", index=False)
    (folder / "records.parquet.part").replace(folder / "records.parquet")


def evaluate(settings: Evaluation, prompt: Prompt, model_path: str, benchmarks: Path, record: StageRecord) -> None:
    """Run all benchmarks; write `records.parquet` (a row per completion) and the metrics.

    Raises:
        PreemptedError: a signal has ended the evaluation, which continues after its last finished batch.
    """
    started = time.perf_counter()
    problems = pd.DataFrame(read_rows(benchmarks))
    problems.insert(1, "problem_id", problems.groupby("benchmark", sort=False).cumcount())
    problems["prompt"] = [format_prompt(problem, prompt.template) for problem in problems["problem"]]
    records = problems.loc[problems.index.repeat(settings.num_samples)].reset_index(drop=True)
    records.insert(2, "sample", records.groupby(["benchmark", "problem_id"], sort=False).cumcount())
    with ended_by_signals("the evaluation, whose finished batches are saved"):
        prompts = list(records["prompt"])
        completions = generate_completions(model_path, prompts, settings, record.checkpoints)
        if not record.is_written:
            return
        records["completion"], records["length"] = completions.texts, completions.lengths
        records["truncated"] = records["length"] >= settings.max_new_tokens
        records = grade_records(records)
        write_records(records, record.out)
    record.finish(
        evaluation_metrics(records) | {"evaluation_runtime_s": time.perf_counter() - started},
        num_processes=num_processes(),
        sampler=completions.sampler,
    )


def regrade(folder: Path) -> int:
    """Grade the records of a finished evaluation again; return how many grades changed.

    `records.parquet` and `metrics.json` are written again, and `run.json` gets the commit and packages that graded.

    Raises:
        UserError: if the folder holds no finished evaluation, or one in a layout that this code does not read.
    """
    if not all((folder / name).exists() for name in ("records.parquet", "metrics.json", "run.json")):
        raise UserError(
            f"{folder} holds no finished evaluation (records.parquet, metrics.json, run.json); "
            "give --out the folder of one, such as results/<study>/evaluate/..."
        )
    run, old = (read_versioned_json(folder / name) for name in ("run.json", "metrics.json"))
    before = pd.read_parquet(folder / "records.parquet")
    records = grade_records(before)
    graded_by = collect_provenance()
    note = {
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "git_commit": graded_by["git_commit"],
        "git_dirty": graded_by["git_dirty"],
        "packages": graded_by["packages"],
    }
    write_records(records, folder)
    runtime = {"evaluation_runtime_s": old["evaluation_runtime_s"]}
    write_versioned_json(folder / "metrics.json", evaluation_metrics(records) | runtime)
    write_versioned_json(folder / "run.json", run | {"regraded": note, "outputs": output_checksums(folder)})
    return int((records["correct"] != before["correct"]).sum())
