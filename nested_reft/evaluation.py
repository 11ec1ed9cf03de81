"""Benchmarks: one completion per problem, graded, as per-problem records."""

import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from nested_reft.config import Evaluation, Prompt
from nested_reft.grading import extract_answer, is_correct
from nested_reft.prompts import format_prompt
from nested_reft.tracking import StageRecord, read_rows


def generate_completions(model_path: str, prompts: list[str], settings: Evaluation) -> tuple[list[str], list[int]]:
    """Return one completion per prompt and its length in tokens; the whole model, no layer skipped."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=getattr(torch, settings.dtype), use_safetensors=True, trust_remote_code=False
    ).to(device)
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left", trust_remote_code=False)
    # Nothing of a model's own generation settings but its tokens: some ship a repetition penalty.
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    torch.manual_seed(settings.seed)

    # Neighbours of similar length waste the least padding; the order is undone at the end.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    texts, lengths = [""] * len(prompts), [0] * len(prompts)
    with tqdm(total=len(prompts), unit="problem", disable=not sys.stderr.isatty()) as progress:
        for start in range(0, len(order), settings.batch_size):
            indices = order[start : start + settings.batch_size]
            batch = tokenizer([prompts[index] for index in indices], return_tensors="pt", padding=True).to(device)
            with torch.no_grad():
                output = model.generate(**batch, max_new_tokens=settings.max_new_tokens, **sampling)
            for index, row in zip(indices, output[:, batch["input_ids"].shape[1] :], strict=True):
                texts[index] = tokenizer.decode(row, skip_special_tokens=True)
                lengths[index] = int((row != tokenizer.pad_token_id).sum())
            progress.update(len(indices))
    return texts, lengths


def evaluate(settings: Evaluation, prompt: Prompt, model_path: str, benchmarks: Path, record: StageRecord) -> None:
    """Run all benchmarks; write `records.parquet` (a row per problem) and the accuracies."""
    started = time.perf_counter()
    records = pd.DataFrame(read_rows(benchmarks))
    prompts = [format_prompt(problem, prompt.template) for problem in records["problem"]]
    records["completion"], records["length"] = generate_completions(model_path, prompts, settings)
    records["extracted"] = [extract_answer(text) for text in records["completion"]]
    records["correct"] = [
        is_correct(text, answer) for text, answer in zip(records["completion"], records["answer"], strict=True)
    ]
    records["truncated"] = records["length"] >= settings.max_new_tokens
    records.to_parquet(record.out / "records.parquet.part", index=False)
    (record.out / "records.parquet.part").rename(record.out / "records.parquet")

    metrics: dict[str, float] = {}
    for benchmark, rows in records.groupby("benchmark", sort=False):
        metrics[f"eval/{benchmark}/pass_at_1"] = float(rows["correct"].mean())
        metrics[f"eval/{benchmark}/n"] = len(rows)
        metrics[f"eval/{benchmark}/mean_length"] = float(rows["length"].mean())
        metrics[f"eval/{benchmark}/truncated"] = float(rows["truncated"].mean())
    accuracies = [value for name, value in metrics.items() if name.endswith("/pass_at_1")]
    metrics["eval/overall/pass_at_1"] = sum(accuracies) / len(accuracies)
    record.finish(metrics | {"evaluation_runtime_s": time.perf_counter() - started})
