"""The export of records in the sample format of lm-evaluation-harness."""

import hashlib

import pandas as pd

from nested_reft.records.files import read_rows, write_versioned_json
from nested_reft.report.lm_eval_samples import export_samples

# The names in a row of lm-evaluation-harness 0.4.9, beside the metrics themselves.
FIELDS = ["doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash"]
FIELDS += ["prompt_hash", "target_hash"]
RECORDS = [
    ("algebra", 0, "What is 1+1?", ["2"], "It is \\boxed{2}.", "2", True),
    ("algebra", 0, "What is 1+1?", ["2"], "No idea.", None, False),
    ("algebra", 1, "Which?", ["1/2", "0.5"], "\\boxed{.5}", ".5", True),
    ("algebra", 1, "Which?", ["1/2", "0.5"], "\\boxed{.5}", ".5", True),
    ("one-step", 0, "Why?", ["3"], "", None, False),
    ("one-step", 0, "Why?", ["3"], "3", None, False),
]


def test_each_benchmark_is_a_file_with_a_row_per_problem(tmp_path):
    columns = ["benchmark", "problem_id", "problem", "answer", "completion", "extracted", "correct"]
    records = pd.DataFrame(RECORDS, columns=columns)
    records.assign(prompt="P: " + records["problem"]).to_parquet(tmp_path / "records.parquet")
    evaluation = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7}
    run = {"settings": {"evaluation": evaluation}, "finished": "2026-01-02T03:04:05.678900+00:00"}
    write_versioned_json(tmp_path / "run.json", run)

    algebra, one_step = export_samples(tmp_path, tmp_path / "out")
    assert algebra.name == "samples_algebra_2026-01-02T03-04-05.678900.jsonl"
    first, second = read_rows(algebra)
    assert [name for name in first if name != "correct"] == FIELDS
    assert first["doc"] == {"problem": "What is 1+1?", "answer": ["2"]}
    assert (first["target"], second["target"]) == ("2", "['1/2', '0.5']")
    arguments = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_gen_toks": 7, "until": []}
    assert first["arguments"] == {"gen_args_0": {"arg_0": "P: What is 1+1?", "arg_1": arguments}}
    assert first["resps"] == [["It is \\boxed{2}.", "No idea."]]
    assert first["filtered_resps"] == [["2", None]]
    assert (first["correct"], second["correct"]) == (0.5, 1.0)
    assert first["prompt_hash"] == hashlib.sha256(b"P: What is 1+1?").hexdigest()
    assert [row["doc_id"] for row in read_rows(one_step)] == [0]
