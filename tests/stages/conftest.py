"""A small training set for the two training stages."""

from pathlib import Path

import pytest

from nested_reft.embedded.problems import generate
from nested_reft.records.files import write_rows


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    """Return a file of four problems: with two prompts per step, a run of three steps crosses an epoch's boundary."""
    rows = generate("mixed", "train", 4, seed=3)
    path = tmp_path / "train.jsonl"
    write_rows(path, [{"problem": row.problem, "solution": row.solution, "answer": row.answer} for row in rows])
    return path
