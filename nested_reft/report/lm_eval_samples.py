"""The records of an evaluation in the format of lm-evaluation-harness's `--log_samples`.

Each benchmark becomes a file `samples_<task>_<date>.jsonl` with a row per problem. Programs that read samples of
lm-evaluation-harness, such as viewers and comparisons, can then read completions of this package.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from nested_reft.records.files import read_versioned_json, write_rows


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, as the harness computes its hashes."""
    return hashlib.sha256(text.encode()).hexdigest()


def generation_arguments(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the section `evaluation` in the names that the harness gives to the arguments of a generation."""
    temperature = evaluation["temperature"]
    return {
        "do_sample": temperature > 0,
        "temperature": temperature,
        "top_p": evaluation["top_p"],
        "max_gen_toks": evaluation["max_new_tokens"],
        "until": [],  # a completion ends with the end token of the model
    }


def sample_of(records: pd.DataFrame, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one problem.

    Args:
        records: the graded records of the problem, one per completion.
        arguments: the arguments of the generation.
    """
    first = records.iloc[0]
    answers = list(first["answer"])
    doc = {"problem": first["problem"], "answer": answers}
    target = str(answers[0] if len(answers) == 1 else answers)
    return {
        "doc_id": int(first["problem_id"]),
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": first["prompt"], "arg_1": arguments}},
        "resps": [list(records["completion"])],
        "filtered_resps": [[text if isinstance(text, str) else None for text in records["extracted"]]],
        "filter": "extracted_answer",
        "metrics": ["correct"],
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(first["prompt"]),
        "target_hash": sha256(target),
        "correct": float(records["correct"].mean()),
    }


def export_samples(evaluation: Path, out: Path) -> list[Path]:
    """Write the records of an evaluation in the harness's format, and return the files.

    Args:
        evaluation: the folder of the evaluation.
        out: the folder to write to.
    """
    run = read_versioned_json(evaluation / "run.json")
    arguments = generation_arguments(run["settings"]["evaluation"])
    date = run["finished"].replace(":", "-").removesuffix("+00-00")
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for benchmark, records in pd.read_parquet(evaluation / "records.parquet").groupby("benchmark", sort=False):
        files.append(out / f"samples_{benchmark}_{date}.jsonl")
        problems = records.groupby("problem_id", sort=False)
        write_rows(files[-1], [sample_of(rows, arguments) for _, rows in problems])
    return files
