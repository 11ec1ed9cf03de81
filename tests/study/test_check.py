"""`nested-reft check`: a study that can start, and each problem that would stop a job later."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import Jobs
from nested_reft.config.study import Study
from nested_reft.errors import UserError
from nested_reft.study import check, disk
from nested_reft.study.check import Work, check_study, jobs_at_once, unfinished_work
from tests.config.studies import load
from tests.conftest import ROOT, TINY

ROW = {"problem": "What is 1 + 1?", "solution": "1 + 1 = 2.", "answer": "2"}
# What stops a job, and words of the sentence about it.
Mistake = Callable[[dict[str, Any], Path], None]


def rows(path: Path, *content: Any) -> str:
    """Write a file of JSON lines and return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def broken_line(study: dict[str, Any], folder: Path) -> None:
    (folder / "t.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:30] + "\n")
    study["datasets"]["mixed"] = {"path": str(folder / "t.jsonl")}


def no_tokenizer(study: dict[str, Any], folder: Path) -> None:
    shutil.copytree(TINY, folder / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    study["models"]["tiny-28"]["path"] = str(folder / "model")


def cut_gguf(study: dict[str, Any], folder: Path) -> None:
    (folder / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    study["models"]["tiny-28"]["path"] = str(folder / "x.gguf")


def shared_layers(study: dict[str, Any], folder: Path) -> None:
    shutil.copytree(TINY, folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps(config | {"num_kv_shared_layers": 2}))
    study["models"]["tiny-28"]["path"] = str(folder / "model")


def broken_checkpoint(study: dict[str, Any], folder: Path) -> None:
    shutil.copytree(TINY, folder / "mine")
    (folder / "mine/model.safetensors").unlink()
    study["models"]["tiny-28"]["sft_checkpoint"] = str(folder / "mine")


def sliding_window(study: dict[str, Any], folder: Path) -> None:
    shutil.copytree(TINY, folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    types = ["sliding_attention"] * config["num_hidden_layers"]
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": types}
    (folder / "model/config.json").write_text(json.dumps(config | window))
    study["models"]["tiny-28"]["path"] = str(folder / "model")
    study["training"]["share_prompts"] = True


def folder_of_images(study: dict[str, Any], folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    Image.new("RGB", (2, 2)).save(folder / "images/a.png")
    study["benchmarks"]["one-step"] = {"path": str(folder / "images"), "split": "train"}


MISTAKES: dict[str, tuple[Mistake, str]] = {
    "few problems": (
        lambda study, folder: study["datasets"].update(mixed={"path": rows(folder / "t.jsonl", ROW)}),
        "t.jsonl has 1 problems, fewer than the 2 of a step (training.prompts_per_step)",
    ),
    "few embedded problems": (
        lambda study, folder: study["datasets"]["mixed"].update(size=1),
        "embedded/mixed has 1 problems, fewer than the 2 of a step",
    ),
    "a broken line": (broken_line, "t.jsonl: line 2 is not JSON"),
    "a column": (
        lambda study, folder: study["datasets"].update(mixed={"path": rows(folder / "t.jsonl", {"text": "a"})}),
        "t.jsonl: row 1 has the columns text, but needs problem, solution, answer",
    ),
    "an empty benchmark": (
        lambda study, folder: study["benchmarks"].update(algebra={"path": rows(folder / "b.jsonl")}),
        "b.jsonl: has no rows",
    ),
    "an empty answer": (
        lambda study, folder: study["benchmarks"].update(
            algebra={"path": rows(folder / "b.jsonl", ROW, ROW | {"answer": []})}
        ),
        "b.jsonl: row 2 has an empty `answer`",
    ),
    "a table": (
        lambda study, folder: study["benchmarks"].update(algebra={"path": str(ROOT / "tests/study/timeline.csv")}),
        "timeline.csv: is a table of text; convert it",
    ),
    "images": (folder_of_images, "images, split 'train': row 1 has the columns image"),
    "no tokenizer": (no_tokenizer, "has no tokenizer that can encode text"),
    "a GGUF file that is cut off": (
        cut_gguf,
        "x.gguf is cut off, or of a kind of GGUF that transformers does not read",
    ),
    "layers that share keys": (shared_layers, "shares keys and values between layers"),
    "a checkpoint without weights": (broken_checkpoint, "mine lacks the weights model.safetensors"),
    "a mistyped store": (
        lambda study, folder: study.update(tracking={"uri": "sqlit:///x.db"}),
        "the MLflow store 'sqlit:///x.db' cannot be opened",
    ),
    "vLLM": (
        lambda study, folder: study["evaluation"].update(sampler="vllm"),
        "evaluation.sampler is 'vllm', which is not installed; `pip install .[vllm]`",
    ),
    "vLLM in trainings": (
        lambda study, folder: study["training"].update(sampler="vllm"),
        "training.sampler is 'vllm', which is not installed; `pip install .[vllm]`",
    ),
    "a LoRA target": (
        lambda study, folder: study["training"].update(lora={"target_modules": ["c_attn"]}),
        "training.lora.target_modules has 'c_attn', which names no linear layer of the decoder of Qwen2ForCausalLM",
    ),
    "shared prompts with a sliding window": (
        sliding_window,
        "training.share_prompts cannot be true for models.tiny-28: layers of the model attend within a sliding window",
    ),
    "bitsandbytes": (
        lambda study, folder: study["sft"].update(optim="paged_adamw_8bit"),
        "sft.optim is 'paged_adamw_8bit', which needs bitsandbytes, which is not installed",
    ),
    "a reward": (
        lambda study, folder: study["training"].update(reward_funcs=["no_such_module:reward"]),
        "training.reward_funcs has no_such_module:reward, whose import failed",
    ),
    "a file in the place of a folder": (
        lambda study, folder: (folder / "results").write_text(""),
        "results is a file, but the study needs a folder",
    ),
}


@pytest.fixture()
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def problems(study: dict[str, Any], folder: Path, is_local: bool = True) -> list[str]:
    """Return the problems of a study in a folder."""
    parsed = parse_settings(Study, study)
    return check_study(parsed, folder, unfinished_work(parsed, folder, is_local)).problems


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_would_stop_a_job_is_one_sentence_beforehand(mistake, tmp_path):
    make, words = MISTAKES[mistake]
    study = load("smoke.yaml")
    make(study, tmp_path)
    (problem,) = problems(study, tmp_path)
    assert words in problem and "\n" not in problem
    assert not (tmp_path / "results").is_dir()


def test_a_missing_gpu_is_found_unless_the_jobs_run_elsewhere(tmp_path, without_gpu, monkeypatch):
    study = load("smoke.yaml")
    study["jobs"]["gpus"] = 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    (problem,) = problems(study, tmp_path)
    assert (
        problem.startswith("jobs.gpus is 1, but torch ") and "and CUDA_VISIBLE_DEVICES '7'; set jobs.gpus" in problem
    )
    assert problems(study, tmp_path, is_local=False) == []


def on_gpus(jobs: dict[str, Any]) -> Study:
    """Return the smoke study with a section `jobs`, without the checks of its batch sizes."""
    return parse_settings(Study, load("smoke.yaml")).model_copy(update={"jobs": Jobs(**jobs)})


def test_the_gpus_are_counted(monkeypatch):
    """Two GPUs are pretended; torch finds none if one is listed twice."""
    seen = []
    monkeypatch.setattr(
        torch.accelerator, "is_available", lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) or 1
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b,MIG-a")
    one, two, three = (
        on_gpus({"gpus": number, "distributed": "ddp" if number > 1 else "none"}) for number in (1, 2, 3)
    )
    assert check.check_device(one, True) == "GPU, for 3 jobs at once"
    assert check.check_device(two, True) == "GPU"
    assert seen == ["MIG-a,MIG-b"] * 2
    assert check.check_device(two, False) == "2 GPUs of the cluster, which cannot be checked here"
    with pytest.raises(UserError, match=r"^jobs\.gpus is 3, but CUDA_VISIBLE_DEVICES '.*' allows 2 GPUs; "):
        check.check_device(three, True)
    own = on_gpus({"gpus": 1, "models": {"tiny-28": {"gpus": 3, "distributed": "fsdp"}}})
    with pytest.raises(UserError, match=r"^jobs\.models\.tiny-28\.gpus is 3, but .* set jobs\.models\.tiny-28\.gpus"):
        check.check_device(own, True)


def test_a_small_disk_is_found_with_what_is_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000_000))
    (problem,) = problems(load("smoke.yaml"), tmp_path)
    assert "of the study need about 0.1 GB under " in problem and "where 0.0 GB are free" in problem


def test_the_disk_space_is_that_of_models_and_running_checkpoints():
    study = parse_settings(Study, load("smoke.yaml"))  # float32
    jobs = Counter({("sft", "tiny-28"): 1, ("train", "tiny-28"): 3, ("evaluate", ""): 5})
    models, checkpoint = 4 * 4 * 1000, 3 * 4 * 1000
    for at_once, running in ((1, 1), (2, 2), (64, 4)):
        assert disk.bytes_needed(study, {"tiny-28": 1000}, jobs, at_once, {}) == models + running * 2 * checkpoint
    assert disk.bytes_needed(study, {}, jobs, 2, {}) == 0  # a model of the hub that is not downloaded yet
    adapters = {("sft", "tiny-28"): 10, ("train", "tiny-28"): 20}  # checkpoints hold the adapter only
    assert disk.bytes_needed(study, {"tiny-28": 1000}, jobs, 1, adapters) == models + 2 * 3 * 4 * 20
    recorded = {"log_completions": True, "max_steps": 40, "completions_total_limit": 10}
    study = parse_settings(Study, load("smoke.yaml") | {"training": load("smoke.yaml")["training"] | recorded})
    tokens = 3 * 10 * 4 * 8  # trainings, steps, completions of a step, their length
    assert disk.bytes_needed(study, {}, jobs, 1, {}) == tokens * disk.BYTES_PER_COMPLETION_TOKEN
    assert disk.contents(study) == "models, checkpoints and completions"


def test_adapters_are_described_and_need_little_space(tmp_path):
    study = load("smoke.yaml")
    study["sft"]["lora"], study["training"]["lora"] = {"r": 4}, {"r": 2, "target_modules": "q_proj"}
    parsed = parse_settings(Study, study)
    found = dict(check_study(parsed, tmp_path, unfinished_work(parsed, tmp_path, True)).found)
    assert found["sft.lora"] == "rank 4, 196 modules, 0.15 M parameters of tiny-28"
    assert found["training.lora"] == "rank 2, 28 modules, 0.01 M parameters of tiny-28"
    assert "training.optim" not in found  # the default needs no check


def test_models_that_are_not_kept_need_the_space_of_the_warm_ups_and_of_the_running_jobs():
    study = parse_settings(Study, load("smoke.yaml") | {"jobs": {"gpus": 0, "keep_models": False}})
    jobs = Counter({("sft", "tiny-28"): 2, ("train", "tiny-28"): 30})
    model, checkpoint = 4 * 1000, 3 * 4 * 1000
    assert disk.bytes_needed(study, {"tiny-28": 1000}, jobs, 2, {}) == 2 * model + 2 * (model + 2 * checkpoint)


def test_jobs_share_the_cores_or_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2,MIG-3")
    cpu = parse_settings(Study, load("smoke.yaml") | {"jobs": {"gpus": 0, "threads": 4}})
    gpu = parse_settings(Study, load("smoke.yaml") | {"jobs": {"gpus": 1, "threads": 4}})
    assert [jobs_at_once(cpu, cores) for cores in (1, 8)] == [1, 2] and jobs_at_once(gpu, 1) == 3
    two = {"gpus": 1, "models": {"tiny-28": {"gpus": 2, "distributed": "ddp"}}}
    assert jobs_at_once(on_gpus(two), 8) == 1  # one job with two GPUs, and one GPU is left


def test_only_what_the_jobs_need_is_checked(tmp_path, without_gpu):
    study = parse_settings(Study, load("smoke.yaml") | {"jobs": {"gpus": 1}, "tracking": {"uri": "foo://x"}})
    work = Work(Counter({("prepare_benchmarks", ""): 1}), 2, True)
    assert [subject for subject, _ in check_study(study, tmp_path, work).found] == [
        "folders",
        "benchmark one-step",
        "benchmark algebra",
    ]


def test_finished_products_need_no_space(smoke_study):
    study = parse_settings(Study, load("smoke.yaml"))
    assert sum(unfinished_work(study, smoke_study, True).jobs.values()) == 2  # the data are always read


def test_the_command_lists_what_it_checked_and_the_size_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["check", str(ROOT / "config/smoke.yaml"), "grid.seed=[0, 1]"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("The study 'smoke' can start: 6 trainings, 2 warm-ups, 9 evaluations.\n")
    for words in ("28 layers, 1.7 M parameters, tokenizer of 487 tokens", "CPU, because jobs.gpus is 0", " GB free"):
        assert words in shown.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"sft": {"num_train_epochs": 0}}, {"sft_checkpoint": "embedded/tiny-28"}])
def test_a_warm_up_that_no_job_makes_is_not_work(change, tmp_path):
    study = load("smoke.yaml")
    study["models"]["tiny-28"] |= {} if "sft" in change else change
    parsed = parse_settings(Study, study | {"sft": change.get("sft", study["sft"])})
    assert "0 warm-ups" in check.describe_size(parsed)
    assert not unfinished_work(parsed, tmp_path, True).has("sft")
    assert "28 layers" in check.check_model(parsed, "tiny-28")


def test_the_command_lists_all_problems(tmp_path, monkeypatch, without_gpu):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jsonl").write_text("{}\n")
    study = load("smoke.yaml") | {"jobs": {"gpus": 1}, "tracking": {"uri": "foo://x"}}
    study["benchmarks"]["mine"] = {"path": "b.jsonl"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    shown = CliRunner().invoke(app, ["check", "mine.yaml"])
    assert shown.exit_code == 2 and shown.stdout == ""
    assert [line.split()[1] for line in shown.stderr.splitlines()] == ["jobs.gpus", "b.jsonl:", "the"]
    assert all(line.startswith("Error: ") for line in shown.stderr.splitlines())


def test_a_server_that_is_down_is_found_before_the_first_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    shown = CliRunner().invoke(app, ["check", str(ROOT / "config/smoke.yaml")])
    assert (shown.exit_code, shown.stdout) == (2, "")
    (sentence,) = shown.stderr.splitlines()
    assert sentence.startswith("Error: the MLflow store 'http://127.0.0.1:9' cannot be opened (Connection refused); ")
    assert not list(tmp_path.iterdir())


def test_a_model_of_the_hub_is_checked_when_it_is_there(monkeypatch):
    study = load("smoke.yaml")
    study["models"]["tiny-28"]["path"] = "nobody/no-such-model"
    study["datasets"]["mixed"] = {"path": "nobody/no-such-data"}
    parsed = parse_settings(Study, study)
    with pytest.raises(UserError, match=r"nobody/no-such-model is neither in the mirror nor in the cache .* fetch`"):
        check.check_model(parsed, "tiny-28")
    with pytest.raises(
        UserError, match=r"could not fetch 'nobody/no-such-data' from the hub .*; run `nested-reft fetch`"
    ):
        check.check_dataset(parsed.datasets["mixed"], parsed.training)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    found = check.check_model(parsed, "tiny-28")
    assert found == "nobody/no-such-model is not a local path, so it is downloaded from the hub and checked then"
    found = check.check_dataset(parsed.datasets["mixed"], parsed.training)
    assert found == "nobody/no-such-data is not a local path, so it is downloaded from the hub and checked then"


def test_a_mirror_is_checked_before_the_first_job(tmp_path, monkeypatch):
    """A whole study of a mirror is checked, and each fault of the mirror is one sentence and exit code 2."""
    monkeypatch.chdir(tmp_path)
    study = load("smoke.yaml") | {"mirror": "mirror", "tracking": {"uri": None}}
    study["models"] = {"tiny-28": {"path": "owner/tiny"}}
    study["datasets"] = {"mixed": {"path": "owner/sums", "rows": "0:6"}}
    study["benchmarks"] = {"sums": {"path": "owner/sums", "split": "train", "rows": "6:8"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "mirror/owner/sums").mkdir(parents=True)
    (tmp_path / "mirror/owner/tiny").symlink_to(TINY)
    rows(tmp_path / "mirror/owner/sums/train.jsonl", *(ROW | {"problem": f"What is {one}?"} for one in range(8)))

    def checked(*changes: str) -> str:
        monkeypatch.delenv("NESTED_REFT_MIRROR", raising=False)
        shown = CliRunner().invoke(app, ["check", "mine.yaml", *changes])
        error = str(shown.exception) if isinstance(shown.exception, UserError) else shown.stderr  # main() prints it
        assert (shown.exit_code == 0) == (error == "") and error.count("\n") < 2, error
        return shown.stdout + error

    found = checked()
    assert "28 layers" in found and "dataset mixed   6 problems" in found and "benchmark sums  2 problems" in found
    assert "/gone is not a folder; correct the config key `mirror`" in checked("mirror=gone")
    assert "mirror/owner/sums: split 'test' cannot be read from train" in checked("benchmarks.sums.split=test")
    assert "owner/sums, split 'train': has 8 rows, but `rows` is 6:9" in checked("benchmarks.sums.rows='6:9'")
    assert "models.tiny-28 owner/none is neither in the mirror nor" in checked("models.tiny-28.path=owner/none")
