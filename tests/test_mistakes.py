"""Mistakes that users make, and what each meets: one sentence and exit code 2 before any job, or what they meant.

The mistakes were made by people who had not read the code. Other tests have more cases of a kind: tests/config for
keys and YAML files, tests/study/test_check.py for models and data, tests/records/test_lock.py for two processes.
"""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nested_reft import cli
from nested_reft.config.study_file import merged
from nested_reft.errors import UserError
from nested_reft.records.files import write_versioned_json
from nested_reft.records.job_logs import last_sentence
from nested_reft.study import check
from tests.config.studies import load
from tests.conftest import ROOT, TINY, run, snakemake

PROBLEM = {"problem": "What is 1 + 1?", "solution": "1 + 1 = 2.", "answer": "2"}


class Started(Exception):
    """Snakemake would start now, with this command."""


@pytest.fixture()
def command(monkeypatch, capsys, tmp_path) -> Callable[..., list[str]]:
    """Return a function that runs `nested-reft` in an empty folder and returns the sentences of a refusal."""

    def start(path: str, arguments: list[str]) -> None:
        raise Started(arguments)

    def refused(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["nested-reft", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out) == (2, ""), printed
        lines = printed.err.splitlines()
        assert all(line.startswith("Error: ") for line in lines), lines
        return lines

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return refused


@pytest.fixture()
def files(tmp_path) -> Path:
    """Fill the folder with the files that the mistakes below need: studies, data and models."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(load("smoke.yaml")))
    texts = {
        "tab.yaml": "study: a\n\tgrid: 3\n",
        "list.yaml": "- study\n",
        "empty.yaml": "",
        "columns.jsonl": '{"text": "1 + 1"}\n',
        "table.csv": "problem,answer\n1 + 1,2\n",
        "none.jsonl": "\n",
        "broken.jsonl": json.dumps(PROBLEM) + '\n{"problem": "2 + 2", "ans\n',
        "unanswered.jsonl": json.dumps(PROBLEM | {"answer": ""}) + "\n",
        "object.json": json.dumps({"data": [PROBLEM]}, indent=1),
        "twice.yaml": "study: mine\nstudy: yours\n",
        "own.py": "def one(completions, **kwargs):\n    return 1.0\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    for name in ("cut", "unrecorded"):
        (tmp_path / name).mkdir()
        run = {"model": "m", "dataset": "d", "skip_ratio": 0.1, "border": 1, "mitigation": "tis", "seed": 0}
        settings = {"run": run, "training": {"log_completions": name == "cut"}, "nesting": {}, "prompt": {}}
        (tmp_path / name / "run.json").write_text(json.dumps({"settings": settings}))
    (tmp_path / "cut/completions").mkdir()
    (tmp_path / "cut/completions/completions_00001-00002.parquet").write_bytes(b"PAR1 cut")
    unfinished = {"stage": "train", "run": {"model": "tiny-28"}}
    for run_of in ("runs/train/half", "copied"):
        (tmp_path / run_of).mkdir(parents=True)
        write_versioned_json(tmp_path / run_of / "run.json", unfinished)
    sft = {"run": {"model": "m", "dataset": "d", "seed": 0}, "sft": load("smoke.yaml")["sft"], "prompt": {}}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(sft))
    (tmp_path / "study/evaluate").mkdir(parents=True)
    shutil.copytree(TINY, tmp_path / "untokenized", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(TINY, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    return tmp_path


# mistake -> command after `nested-reft`, words of its sentence
REFUSED: dict[str, tuple[list[str], str]] = {
    "1 a config that does not exist": (["run", "config/nope.yaml"], "the config config/nope.yaml does not exist"),
    "2 a folder": (["run", "folder"], "the config folder is a folder; give the YAML file of a study"),
    "3 two configs": (["run", "mine.yaml", "tab.yaml"], "mine.yaml and tab.yaml are two configs"),
    "5 a change that is not quoted": (["run", "mine.yaml", "--config", "training={max_steps:", "3}"], "quote it"),
    "6 a key without its section": (["run", "mine.yaml", "seed=-1"], "did you mean `grid.seed` or `evaluation.seed`?"),
    "6 a wrong value": (["run", "mine.yaml", "grid.seed=-1"], "`grid.seed.0` is -1"),
    "9 a tab": (["run", "tab.yaml"], "the config tab.yaml is not YAML: line 2 has a tab; indent with spaces"),
    "9 an empty file": (["run", "empty.yaml"], "the config empty.yaml is empty"),
    "9 not a mapping": (["run", "list.yaml"], "the config list.yaml holds no keys"),
    "9 a README": (["run", str(ROOT / "README.md")], "README.md is not YAML: line "),
    "10 nucleus sampling": (["run", "mine.yaml", "training.top_p=.9"], "it is fixed at 1: with nucleus sampling, the"),
    "10 a name": (["run", "mine.yaml", "models={modèle β: {path: x/y}}"], "config key `models.modèle β` is"),
    "11 accents": (["run", "mine.yaml", "study=étude"], "a name consists of the letters A-Z and a-z, digits"),
    "12 a wrong path": (["run", "mine.yaml", "models.tiny-28.path=/no/model"], "(/no/model) does not exist"),
    "12 a wrong name": (["run", "mine.yaml", "models.tiny-28.path=embedded/tiny-82"], "is not an embedded model"),
    "12 a file for a model": (["run", "mine.yaml", "models.tiny-28.path=mine.yaml"], "holds no config.json"),
    "13 columns": (["check", "mine.yaml", "benchmarks.algebra.path=columns.jsonl"], "row 1 has the columns text"),
    "13 CSV": (["check", "mine.yaml", "benchmarks.algebra.path=table.csv"], "table.csv: is a table of text"),
    "13 no rows": (["check", "mine.yaml", "benchmarks.algebra.path=none.jsonl"], "none.jsonl: has no rows"),
    "13 a broken line": (["check", "mine.yaml", "benchmarks.algebra.path=broken.jsonl"], "line 2 is not JSON"),
    "13 an empty folder": (["check", "mine.yaml", "benchmarks.algebra.path=folder"], "folder: split 'test' cannot be"),
    "14 no tokenizer": (["check", "mine.yaml", "models.tiny-28.path=untokenized"], "has no tokenizer that can encode"),
    "14 no tokenizer, inspected": (["diagnose", "untokenized", "--data", "good.jsonl"], "has no tokenizer that can"),
    "15 diagnosis of a page": (["diagnose", str(TINY), "--data", str(ROOT / "README.md")], "line 1 is not JSON"),
    "15 diagnosis of other columns": (
        ["diagnose", str(TINY), "--data", "columns.jsonl"],
        "row 1 has the columns text",
    ),
    "16 no GPU": (["check", "mine.yaml", "jobs.gpus=1"], "jobs.gpus is 1, but torch "),
    "17 no vLLM": (["check", "mine.yaml", "evaluation.sampler=vllm"], "evaluation.sampler is 'vllm', which is not"),
    "18 garbage as store": (["check", "mine.yaml", "tracking.uri=garbage"], "the MLflow store 'garbage' cannot be"),
    "18 a server that is down": (["check", "mine.yaml", "tracking.uri=http://127.0.0.1:9"], "(Connection refused)"),
    "20 a report of a study that has not run": (["report", "mine.yaml"], "run the study first"),
    # Ten more.
    "a mitigation in a list": (
        ["run", "mine.yaml", "grid.mitigation=[base, retraces]"],
        "`grid.mitigation.1` is 'ret",
    ),
    "a report as config": (["run", str(ROOT / "docs/reports/embedded/findings.rst")], "findings.rst is not YAML"),
    "a table as config": (["run", "table.csv"], "the config table.csv holds no keys"),
    "negative threads": (["run", "mine.yaml", "jobs.threads=-1"], "`jobs.threads` is -1"),
    "a skip ratio in percent": (["run", "mine.yaml", "grid.skip_ratio=15"], "`grid.skip_ratio.0` is 15"),
    "seeds as text": (["run", "mine.yaml", "grid.seed='0,1,2'"], "`grid.seed.0` is '0,1,2'"),
    "weights as pickle": (["check", "mine.yaml", "models.tiny-28.path=pickled"], "weights only as pytorch_model.bin"),
    "empty answers": (["check", "mine.yaml", "datasets.mixed.path=unanswered.jsonl"], "row 1 has an empty `answer`"),
    "a mistyped file": (
        ["check", "mine.yaml", "datasets.mixed.path=data/coin.jsonl"],
        "data/coin.jsonl does not exist in",
    ),
    "a mistyped folder": (
        ["check", "mine.yaml", "models.tiny-28.path=folder/model"],
        "folder/model does not exist in",
    ),
    "one JSON object": (
        ["check", "mine.yaml", "datasets.mixed.path=object.json"],
        "is one JSON object, but should be",
    ),
    "too few problems": (["check", "mine.yaml", "datasets.mixed.size=1"], "fewer than the 2 of a step"),
    "a key twice": (["check", "twice.yaml"], "the config twice.yaml is not YAML: line 2 repeats the key `study`"),
    "no models": (["check", "empty-models.yaml"], "`models` is empty"),
    "a store without its kind": (
        ["check", "mine.yaml", "tracking.uri=results/mlflow.db"],
        "set tracking.uri to sqlite:",
    ),
    "two configs to check": (["check", "mine.yaml", "tab.yaml"], "'tab.yaml' is not a change of a key"),
    "status of nothing": (["status", "nope.yaml"], "the config nope.yaml does not exist"),
    # Of the commands for a whole study, by someone who had not read the code.
    "cores below one": (["run", "mine.yaml", "--cores", "-1"], "--cores is '-1'; give a number from 1"),
    "cores in words": (["run", "mine.yaml", "-c", "two"], "-c is 'two'; give a number from 1"),
    "jobs without a number": (["run", "mine.yaml", "-n", "-j"], "-j is ''; give a number from 1"),
    "spaces in a change": (["run", "mine.yaml", "-n", "training.max_steps", "=", "3"], "has a space beside its `=`"),
    "no value": (["run", "mine.yaml", "-n", "training.max_steps="], "`training.max_steps` is null"),
    "a key without its section, after an option": (
        ["run", "mine.yaml", "-n", "max_steps=3"],
        "did you mean `training.",
    ),
    "data as config": (["run", "columns.jsonl", "-n"], "columns.jsonl has no key `study`; give the YAML file"),
    "status before any start": (["status"], "no study was started in "),
    "status of a folder": (["status", "folder"], "the config folder is a folder; give the YAML file of a study"),
    "a report before any study": (["report"], "neither a report in reports/ nor a result in results/; run a study"),
    "a report of a folder": (["report", "folder"], "folder has no results.csv, which a report is rebuilt from; give"),
    "a report of data": (["report", "columns.jsonl"], "columns.jsonl has no key `study`"),
    "a report as a folder": (
        ["report", "mine.yaml", "--out", "folder"],
        "--out folder is a folder; name a file, as in",
    ),
    "a report below a file": (
        ["report", "mine.yaml", "--out", "table.csv/report.html"],
        "table.csv is a file, so that --out cannot be a folder there; name another one",
    ),
    "a comparison with nothing": (["compare", "mine.yaml", "nope.yaml"], "mine.yaml has no report in reports/"),
    "a comparison of nothing": (["compare", "nope.yaml", "mine.yaml"], "nope.yaml does not exist; give the YAML file"),
    "a comparison of studies that have not run": (["compare", "mine.yaml", "mine.yaml"], "run it first: `nested-reft"),
    "a comparison of all results": (["compare", "study", "study"], "study has the results of a whole study; give"),
    "a comparison of empty folders": (["compare", "folder", "folder"], "folder holds no finished evaluation"),
    "a replay of nothing": (["replay", "folder"], "folder is not the folder of a training; give a folder such as"),
    "a replay with no such mitigation": (
        ["replay", "folder", "--mitigation", "tis,clip"],
        "--mitigation has 'clip'; choose from base, practical, retrace, is, tis, icepop, ",
    ),
    "a replay without a record": (
        ["replay", "unrecorded"],
        "unrecorded has no record of its completions; set training.log_completions to true and train again",
    ),
    "a replay with a wrong parameter": (
        ["replay", "cut", "--truncation-cap", "0"],
        "--truncation-cap is 0.0, but it should be greater than 0; correct it.",
    ),
    "a replay of a record that is cut": (
        ["replay", "cut"],
        "cut/completions/completions_00001-00002.parquet is cut short or damaged",
    ),
    "a comparison of data": (["compare", "columns.jsonl", "none.jsonl"], "columns.jsonl has no key `study`"),
    "an export of nothing": (["export", "nope"], "nope is not a folder; give that of an evaluation, results/"),
    "an export of a file": (["export", "table.csv"], "table.csv is not a folder; give that of an evaluation"),
    "an export of an empty folder": (["export", "folder"], "folder holds no finished evaluation (records.parquet"),
    "an export of an unfinished run": (["export", "runs/train/half"], "half holds no finished evaluation (records"),
    "an export of a copied run": (["export", "copied"], "copied holds no finished evaluation (records"),
    "a comparison of unfinished runs": (
        ["compare", "runs/train/half", "runs/train/half"],
        "half holds no finished evaluation",
    ),
    "a sample of nothing": (["sample", "nope", "--problem", "1 + 1"], "model 'nope' is not a folder; give the folder"),
    "a sample of an empty folder": (
        ["sample", "folder", "--problem", "1 + 1"],
        "folder holds no model; give a",
    ),
    "a sample of an unfinished run": (
        ["sample", "runs/train/half", "--problem", "1 + 1"],
        "half holds no model;",
    ),
    "a diagnosis of nothing": (["diagnose", "nope", "--data", "good.jsonl"], "model 'nope' is not a folder; give the"),
    "a diagnosis of an empty folder": (
        ["diagnose", "folder", "--data", "good.jsonl"],
        "folder is not a model, bec",
    ),
    "a diagnosis of an unfinished run": (
        ["diagnose", "runs/train/half", "--data", "good.jsonl"],
        "half is not a model, because it has no config.json; give the folder of",
    ),
    "a report of nothing": (["report", "nope.yaml"], "the config nope.yaml does not exist"),
    "a report of an unfinished run": (["report", "runs/train/half"], "half has no results.csv, which a report is"),
    "a diagnosis written to a file": (
        ["diagnose", str(TINY), "--data", "good.jsonl", "--out", "table.csv"],
        "table.csv is a file, so that --out cannot be a folder there; name another one",
    ),
    "an export written below a file": (
        ["export", "folder", "--out", "table.csv/samples"],
        "table.csv is a file, so that --out cannot be a folder there",
    ),
    "an analysis written below a file": (
        ["analyse", "--from", "folder", "--out", "table.csv/new"],
        "table.csv is a file, so that --out cannot be a folder there",
    ),
    "a warm-up written below a file": (
        ["sft", "--model", str(TINY), "--data", "good.jsonl", "--out", "table.csv/new", "--settings", "sft.yaml"],
        "table.csv is a file, so that --out cannot be a folder there",
    ),
    "a reward that is one number": (
        ["check", "mine.yaml", "training.reward_funcs=[own.py:one]"],
        "own.py:one, which returned 1.0 when it was called on ",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_one_sentence_and_exit_code_2_before_any_job(mistake, command, files):
    (files / "good.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (files / "empty-models.yaml").write_text(yaml.safe_dump(load("smoke.yaml") | {"models": {}}))
    arguments, words = REFUSED[mistake]
    (sentence,) = command(*arguments)
    assert words in sentence
    assert not (files / "results").exists() and not (files / ".snakemake").exists()


def changes_passed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what `nested-reft run` passes on to Snakemake as `--config`."""
    monkeypatch.setattr(sys, "argv", ["nested-reft", "run", *arguments])
    with pytest.raises(Started) as started:
        cli.main()
    passed = started.value.args[0]
    settings: dict[str, Any] = {}
    for entry in passed[passed.index("--config") + 1 :]:
        section, _, value = entry.partition("=")
        settings = merged(settings, {section: json.loads(value)})
    return settings


def test_4_and_7_changes_with_dots_work_and_null_stays_null(command, files, monkeypatch):
    passed = changes_passed(["mine.yaml", "grid.seed=3", "training.max_steps=3", "tracking.uri=null"], monkeypatch)
    assert passed == {"grid": {"seed": 3}, "training": {"max_steps": 3}, "tracking": {"uri": None}}


def test_7_null_on_the_command_line_of_snakemake_is_null(tmp_path):
    smoke = ("--configfile", str(ROOT / "config/smoke.yaml"), "--config", "tracking={uri: null}")
    made = snakemake(tmp_path, "results/smoke/tracking.json", *smoke)
    assert made.returncode == 0, made.stdout + made.stderr
    assert json.loads((tmp_path / "results/smoke/tracking.json").read_text())["uri"] is None


def test_8_a_mistyped_option_of_snakemake_ends_with_a_clear_line(tmp_path):
    finished = snakemake(tmp_path, "--configfil", "x.yaml")
    assert finished.returncode == 2 and "--configfil" in finished.stderr.splitlines()[-1]


def test_14_every_stage_refuses_a_model_without_a_tokenizer(files, command):
    (files / "train.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    run_of = {"model": "m", "dataset": "d", "seed": 0}
    smoke = load("smoke.yaml")
    settings = {"run": run_of, "sft": smoke["sft"], "prompt": {}}
    model = ["--model", "untokenized", "--data", "train.jsonl", "--out", "out"]
    (sentence,) = command("sft", "--settings", json.dumps(settings), *model)
    assert "has no tokenizer that can encode text" in sentence


def test_16_jobs_on_the_cpu_do_not_see_a_gpu(tmp_path):
    """The workflow hides the GPUs from its jobs if `jobs.gpus` is 0, and from no other job."""
    shown = 'print("visible", repr(os.environ.get("CUDA_VISIBLE_DEVICES")))'
    (tmp_path / "Snakefile").write_text(f'include: "{ROOT}/Snakefile"\n{shown}\n')
    for gpus, visible in ((0, "''"), (1, "'3'")):
        command = ["env", "CUDA_VISIBLE_DEVICES=3", str(Path(sys.executable).with_name("snakemake")), "-n", "--quiet"]
        config = ["--configfile", str(ROOT / "config/smoke.yaml"), "--config", f"jobs={{gpus: {gpus}}}"]
        planned = run(*command, *config, cwd=tmp_path)
        assert f"visible {visible}" in planned.stdout, planned.stdout + planned.stderr


def test_16_as_many_gpu_jobs_run_at_once_as_there_are_gpus(tmp_path):
    """The limit is that of the machine, or the one on the command line; jobs on a cluster have none."""
    shown = 'print("limit", workflow.global_resources.args)'
    (tmp_path / "Snakefile").write_text(f'include: "{ROOT}/Snakefile"\n{shown}\n')
    # An `nvidia-smi` of the machine would say that it has no devices of these names.
    visible = ["env", "CUDA_VISIBLE_DEVICES=MIG-pretend-0,MIG-pretend-1"]
    study = ["--configfile", str(ROOT / "config/smoke.yaml"), "--config"]
    for gpus, options, limit in (
        (1, [], "'gpu=2'"),
        (1, ["--resources", "gpu=1"], "'gpu=1'"),
        (0, [], ""),
        (1, ["--executor", "slurm", "--jobs", "8"], ""),
    ):
        command = [*visible, str(Path(sys.executable).with_name("snakemake")), "-n", "--quiet", *options]
        planned = run(*command, *study, f"jobs={{gpus: {gpus}}}", cwd=tmp_path)
        (line,) = re.findall("limit (.*)", planned.stdout)
        assert ("gpu=" in line) == bool(limit) and limit in line, planned.stdout + planned.stderr


def test_16_and_18_snakemake_itself_names_all_problems_before_the_first_job(tmp_path):
    study = load("smoke.yaml") | {"tracking": {"uri": "foo://x"}}
    study["benchmarks"]["one-step"] = {"path": str(tmp_path / "b.jsonl")}
    (tmp_path / "b.jsonl").write_text("{}\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    finished = snakemake(tmp_path, "--configfile", str(tmp_path / "mine.yaml"))
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    sentences = [line for line in finished.stderr.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 2 and "b.jsonl: row 1" in sentences[0] and "'foo://x' cannot be opened" in sentences[1]
    assert not (tmp_path / "results").exists() and not list(tmp_path.glob(".snakemake/locks/*.lock"))


def test_18_the_variable_of_mlflow_is_checked_too(command, files, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://x")
    (sentence,) = command("check", "mine.yaml")
    assert "the MLflow store 'htp://x' cannot be opened" in sentence


def test_19_a_part_of_a_study_is_not_called_complete(tmp_path):
    finished = snakemake(tmp_path, "--until", "tracking_store", "--configfile", str(ROOT / "config/smoke.yaml"))
    assert finished.returncode == 0
    assert "The study 'smoke' is complete" not in finished.stdout + finished.stderr


def test_21_a_full_disk_is_said_in_the_log_of_the_job(monkeypatch, capsys, tmp_path):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    (tmp_path / "job.log").write_text("2026-01-01 00:00:00 INFO step 1/2\n" + capsys.readouterr().err)
    assert re.match(r"the disk of /.* is full, or its quota is used up", last_sentence(tmp_path / "job.log"))


def test_22_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(check.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written to; change its permissions"):
        check.check_folders("mine", tmp_path)


def test_26_a_python_without_the_packages_names_the_environment(tmp_path):
    finished = run("env", f"PYTHONPATH={ROOT}", sys.executable, "-S", "-m", "nested_reft", cwd=tmp_path)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert re.match(r"Error: \S+ lacks the package \w+; activate the environment", line)


def test_27_make_checks_the_version_of_python_first(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    finished = run("make", "setup", "PYTHON=./old", cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[0].startswith("Error: PYTHON=./old is not Python 3.11 or later; name one that")
    assert not (tmp_path / ".venv").exists()


def test_29_no_line_of_a_dry_run_is_a_wall(tmp_path):
    planned = snakemake(tmp_path, "-n", "--configfile", str(ROOT / "config/embedded-full.yaml"))
    assert planned.returncode == 0, planned.stderr
    assert max(map(len, (planned.stdout + planned.stderr).splitlines())) < 1000
    assert "Completing the study" in planned.stdout + planned.stderr
