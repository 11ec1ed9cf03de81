"""The stage `evaluate`: completions of every benchmark problem, graded, and accuracies with intervals.

The records hold everything that a grade depends on, so that `nested-reft evaluate --regrade` can grade them again
without the model. Torch is imported only where completions are generated, so that `--regrade` does not load it.
"""

import logging
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.grading import grade as grading
from nested_reft.processes import gather, merge_shares, num_processes, rank, share_of
from nested_reft.records.files import output_checksums, read_rows, read_versioned_json, write_versioned_json
from nested_reft.records.progress import completion_row
from nested_reft.records.provenance import collect_provenance
from nested_reft.records.stage_record import StageRecord
from nested_reft.report.sources import problem_scores
from nested_reft.report.statistics import effective_n, pass_at_k, problem_interval, wilson_interval

log = logging.getLogger(__name__)

# An evaluation logs how far it is at most this often.
SECONDS_BETWEEN_ROWS = 10.0
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


def generate_completions(model_path: str, prompts: list[str], settings: Evaluation) -> tuple[list[str], list[int]]:
    """Return one completion per prompt, sampled without skipping, and the lengths of the completions in tokens.

    Each rank samples its share of the completions and gets those of all.
    """
    if settings.sampler == "vllm":
        from nested_reft.rollout.vllm import complete

        return complete(model_path, prompts, settings)
    import torch

    from nested_reft.model.loading import end_token_ids, load_model
    from nested_reft.rollout.generate import complete_by_generate
    from nested_reft.rollout.sampler import engine_for
    from nested_reft.rollout.token_sampling import SamplingParams

    model, tokenizer = load_model(Path(model_path), settings.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    prompt_ids = share_of(tokenizer(prompts)["input_ids"])
    sampling = SamplingParams(
        settings.max_new_tokens,
        settings.temperature,
        settings.top_p if settings.temperature > 0 else 1.0,
        eos_token_ids=end_token_ids(model, tokenizer),
    )
    log_finished = CompletionLogger(len(prompt_ids)).count
    engine = engine_for(model, settings.sampler, prompt_ids, sampling, settings.batch_size) if prompt_ids else None
    if not prompt_ids:  # there are more ranks than completions
        completions = []
    elif engine is None:
        # `generate` samples from the global random state: no two ranks of a run share a seed.
        own = settings.model_copy(update={"seed": settings.seed * num_processes() + rank()})
        completions = complete_by_generate(model, tokenizer, prompt_ids, own, log_finished)
    else:
        completions, _ = engine.sample(
            prompt_ids,
            sampling,
            settings.seed,
            batch_size=settings.batch_size,
            first_row=rank(),
            on_finished=log_finished,
            row_step=num_processes(),
        )
    completions = merge_shares(gather(completions))
    return tokenizer.batch_decode(completions, skip_special_tokens=True), [len(tokens) for tokens in completions]


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
    low, high = wilson_interval(scores.mean(), effective_n(scores), CONFIDENCE)
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

    `pass_at_1` is the share of correct completions, with Wilson's interval, `n` the number of problems, `pass_at_k`
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
    if not record.is_written:
        return
    records["truncated"] = records["length"] >= settings.max_new_tokens
    records = grade_records(records)
    write_records(records, record.out)
    record.finish(
        evaluation_metrics(records) | {"evaluation_runtime_s": time.perf_counter() - started},
        num_processes=num_processes(),
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
