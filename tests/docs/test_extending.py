"""`docs/extending.md`, done: a model, a training set, a benchmark and a mitigation are added as it says."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from nested_reft.records.files import read_rows
from tests.conftest import ROOT, TINY, snakemake

PAGE = (ROOT / "docs/extending.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture()
def extended(tmp_path):
    """Return a function that writes the smoke study with the entries of the page, for files of this test."""

    def write() -> str:
        study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
        for block in blocks("yaml"):
            for section, entries in yaml.safe_load(block).items():
                study[section] |= entries
        study["models"]["mine"]["path"] = "mine"
        study["grid"] |= {"mitigation": ["base"]}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        shutil.copytree(TINY, tmp_path / "mine", ignore=shutil.ignore_patterns("*.md", "*.svg"))
        (tmp_path / "data").mkdir()
        rows = [
            {"problem": f"{i} + 1?", "solution": f"{i} and 1 is {i + 1}.", "answer": str(i + 1)} for i in range(20)
        ]
        (tmp_path / "data/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        held = [{"problem": "3 + 1?", "answer": ["4", "four"]}, {"problem": "7 + 7?", "answer": "14"}]
        (tmp_path / "data/benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
        return str(tmp_path / "study.yaml")

    return write


def test_a_training_set_and_a_benchmark_are_an_entry_each(extended, tmp_path):
    targets = [f"results/smoke/data/{name}.jsonl" for name in ("benchmarks", "dataset~mine/train")]
    done = snakemake(tmp_path, *targets, "--configfile", extended())
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks, train = (read_rows(tmp_path / target) for target in targets)
    assert [row["answer"] for row in benchmarks if row["benchmark"] == "mine"] == [["4", "four"], ["14"]]
    assert len({row["benchmark"] for row in benchmarks}) == 3
    assert len(train) == 19 and "3 + 1?" not in {row["problem"] for row in train}


@pytest.mark.slow
def test_a_model_on_it_is_trained_evaluated_and_reported(extended, tmp_path):
    done = snakemake(tmp_path, "--configfile", extended())
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "reports/smoke/results.csv")
    trained = table[table["stage"] == "train"]
    assert set(trained["model"]) == {"mine"} and set(trained["dataset"]) == {"mine"}
    assert set(table["benchmark"]) == {"one-step", "algebra", "mine"}


def test_a_mitigation_is_a_function_and_its_name(tmp_path):
    """The edits are made in a copy of the package, which then trains nothing but knows it everywhere."""
    package = tmp_path / "nested_reft"
    shutil.copytree(ROOT / "nested_reft", package, ignore=shutil.ignore_patterns("__pycache__"))
    function, case, literal = blocks("python")

    def edit(name: str, old: str, new: str) -> None:
        text = (package / name).read_text()
        assert text.count(old) == 1
        (package / name).write_text(text.replace(old, new))

    edit("mitigation.py", "def token_weights(", f"{function}\n\ndef token_weights(")
    edit("mitigation.py", '        case "is":', f'{case}        case "is":')
    edit("config.py", re.search(r"^Mitigation = .*\n", (package / "config.py").read_text(), re.M)[0], literal)
    program = (
        "import torch, nested_reft\n"
        "from pathlib import Path\n"
        f"assert nested_reft.__file__.startswith({str(tmp_path)!r})\n"
        "from nested_reft import analysis, config, mitigation\n"
        "from tests import synthetic\n"
        "h = mitigation.token_weights('square_root', torch.tensor([4.0, 0.25]), 1.0, 2.0)\n"
        "assert h.tolist() == [2.0, 0.5]\n"
        "study = synthetic.study(seeds=1, models=1, datasets=1)\n"
        "grid = study.grid.model_dump() | {'mitigation': ['base', 'square_root']}\n"
        "study = config.parse_settings(config.Study, study.model_dump() | {'grid': grid})\n"
        "synthetic.write(study, Path('results'))\n"
        "analysis.report(study, Path('results'), Path('report'))\n"
    )
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "square_root" in (tmp_path / "report/strategy_counts.md").read_text()
    assert "square_root" in (tmp_path / "report/figure_one-step.svg").read_text()
