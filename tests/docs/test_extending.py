"""The how-to pages, followed: models, data, a mitigation, a prompt template and a reward are added."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import Prompt, Training
from nested_reft.data.prompts import format_prompt
from nested_reft.grading.rewards import REWARDS
from nested_reft.records.files import read_json, read_rows
from nested_reft.stages.train import reward_functions
from tests.conftest import ROOT, TINY, snakemake
from tests.docs.test_docs import blocks
from tests.test_workflow import jobs


def code_of(name: str, language: str) -> list[str]:
    """Return the code blocks of a how-to page in a language."""
    return [block.code for block in blocks(ROOT / f"docs/how-to/{name}.md") if block.language == language]


@pytest.fixture()
def extended(tmp_path):
    """Write the smoke study with the entries of the pages and with files of this test; return its path."""
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    for page in ("dataset", "benchmark", "model"):
        part, *_ = code_of(page, "yaml")
        for section, entries in yaml.safe_load(part).items():
            study[section] |= entries
    study["models"]["mine"]["path"] = "mine"
    study["grid"] |= {"mitigation": ["base"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    shutil.copytree(TINY, tmp_path / "mine", ignore=shutil.ignore_patterns("*.md", "*.svg"))
    (tmp_path / "data").mkdir()
    (row,) = code_of("dataset", "json")
    rows = [{"problem": f"{i} + 1?", "solution": f"{i} and 1 is {i + 1}.", "answer": str(i + 1)} for i in range(20)]
    (tmp_path / "data/mine.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [json.loads(row), *rows]))
    held = [{"problem": "3 + 1?", "answer": ["4", "four"]}, {"problem": "7 + 7?", "answer": "14"}]
    held.append(json.loads(code_of("benchmark", "json")[0]))
    (tmp_path / "data/benchmark.jsonl").write_text("".join(json.dumps(one) + "\n" for one in held))
    return str(tmp_path / "study.yaml")


def test_a_training_set_and_a_benchmark_are_an_entry_each(extended, tmp_path):
    targets = [f"results/smoke/data/{name}.jsonl" for name in ("benchmarks", "dataset~mine/train")]
    done = snakemake(tmp_path, *targets, "--configfile", extended)
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks, train = (read_rows(tmp_path / target) for target in targets)
    answers = [row["answer"] for row in benchmarks if row["benchmark"] == "mine"]
    assert answers == [["4", "four"], ["14"], ["29", "twenty-nine"]]
    assert len({row["benchmark"] for row in benchmarks}) == 3
    problems = {row["problem"] for row in train}
    assert len(problems) == 20 and "3 + 1?" not in problems and "What is 6 times 7?" in problems


@pytest.fixture()
def rewarded(extended, tmp_path):
    """Write a study without a warm-up whose reward is the function of the page; return the path of the function."""
    reward, study = tmp_path / "my_rewards.py", yaml.safe_load(Path(extended).read_text())
    reward.write_text(code_of("reward", "python")[0])
    study["training"] |= yaml.safe_load(code_of("reward", "yaml")[0])["training"]
    study["sft"]["num_train_epochs"] = 0
    study["analysis"]["speed_rounds"] = 0
    Path(extended).write_text(yaml.safe_dump(study))
    return reward


def check_training_with_reward(folder: Path, reward: Path) -> None:
    """Check that a training used the model of the page and the user's reward."""
    inputs = read_json(folder / "run.json")["inputs"]
    assert inputs["model"]["path"] == "mine"
    assert inputs["my_rewards.py:right_and_short"]["path"] == str(reward)
    assert "rewards/right_and_short/mean" in read_rows(folder / "metrics.jsonl")[0]


@pytest.mark.slow
def test_a_model_on_it_is_trained_with_a_reward_and_the_training_follows_the_reward(rewarded, extended, tmp_path):
    folder = "results/smoke/train/model~mine/dataset~mine/skip_ratio~0.15/border~1/mitigation~base/seed~0"
    target = ("--configfile", extended, "--", f"{folder}/run.json")
    done = snakemake(tmp_path, *target)
    assert done.returncode == 0, done.stdout + done.stderr
    check_training_with_reward(tmp_path / folder, rewarded)
    rewarded.touch()  # the same content
    planned = snakemake(tmp_path, "-n", *target)
    assert "Nothing to be done" in planned.stdout + planned.stderr
    rewarded.write_text(rewarded.read_text() + "# changed\n")
    planned = snakemake(tmp_path, "-n", *target)
    assert jobs(planned.stdout + planned.stderr) == {"train": 1}


@pytest.mark.slow
@pytest.mark.nightly  # the test above makes one training
def test_a_model_on_it_is_trained_with_a_reward_without_a_warm_up_and_the_study_follows(rewarded, extended, tmp_path):
    done = snakemake(tmp_path, "--configfile", extended)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "reports/smoke/results.csv")
    assert set(table["product"]) == {"pretrained", "train"}
    trained = table[table["product"] == "train"]
    assert set(trained["model"]) == {"mine"} and set(trained["dataset"]) == {"mine"}
    assert set(table["benchmark"]) == {"one-step", "algebra", "mine"}
    assert pd.read_csv(tmp_path / "reports/smoke/answers.csv")["before training"].notna().all()
    for run_json in tmp_path.glob("results/smoke/train/**/run.json"):
        check_training_with_reward(run_json.parent, rewarded)
    rewarded.write_text(rewarded.read_text() + "# changed\n")
    planned = snakemake(tmp_path, "-n", "--configfile", extended)
    assert jobs(planned.stdout + planned.stderr) == {"train": 2, "evaluate": 2, "analyse": 1}


def run_program(program: str, directory) -> None:
    """Run Python code in a process of its own, which reads the registries as the code has left them."""
    command = [sys.executable, "-c", program]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mitigation_is_a_function_in_a_table(tmp_path):
    """The page's function is registered; config, weights, tables and figures then know its name."""
    (function,), (part,) = code_of("mitigation", "python"), code_of("mitigation", "yaml")
    program = f"""{function}
from pathlib import Path

import torch
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import Nesting
from nested_reft.config.study import Study
from nested_reft.mitigation import SampledTokens, token_weights
from nested_reft.report.build import report
from tests import synthetic

ones = torch.ones(1, 2)
tokens = SampledTokens(torch.tensor([[4.0, 0.25]]).log(), 0 * ones, ones, ones[:, :1])
assert token_weights("square_root", tokens, Nesting())[0].tolist() == [2.0, 0.5]
settings = synthetic.study(seeds=1, models=1, datasets=1).model_dump()
settings["grid"] |= yaml.safe_load({part!r})["grid"]
study = parse_settings(Study, settings)
synthetic.write(study, Path("results"))
report(study, Path("results"), Path("report"))
"""
    run_program(program, tmp_path)
    assert "square_root" in (tmp_path / "report/strategy_counts.md").read_text()
    assert "square_root" in (tmp_path / "report/figure_one-step.svg").read_text()


def test_a_prompt_template_is_a_file(tmp_path, monkeypatch):
    (text,), (part,) = code_of("prompt", "text"), code_of("prompt", "yaml")
    (tmp_path / "my_prompt.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    template = parse_settings(Prompt, yaml.safe_load(part)["prompt"]).template
    assert format_prompt("1 + 1?", template).startswith("Problem: 1 + 1?\nEnd your solution with \\boxed{answer}.")


def test_a_reward_is_a_function_in_a_file(tmp_path, monkeypatch):
    (function,), (part,) = code_of("reward", "python"), code_of("reward", "yaml")
    (tmp_path / "my_rewards.py").write_text(function)
    monkeypatch.chdir(tmp_path)
    training = parse_settings(Training, yaml.safe_load(part)["training"])
    own, correctness = reward_functions(training)
    assert own(completions=["\\boxed{12}"], answer=["12"], prompts=["?"])[0] > 1.0
    assert correctness is REWARDS["correctness"]
