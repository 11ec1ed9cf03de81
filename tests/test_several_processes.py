"""Two processes on the CPU compute what one process computes: SFT, training, a resumed training and an evaluation.

Sums of gradients are taken in another order, so numbers agree to rounding. Completions have different lengths.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer

from nested_reft.config.parse import canonical
from nested_reft.config.sections import Evaluation, Lora, Nesting, Prompt, Sft, Training
from nested_reft.config.study import Run
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.model.loading import load_model
from nested_reft.records.files import read_json, read_rows, write_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.stages import evaluate, sft, train
from nested_reft.stages import replay as replaying
from nested_reft.stages.checkpoints import check_processes_of
from tests.conftest import ROOT, TINY
from tests.stages.test_train import untimed

# The weight min(1, ratio) is continuous. `base` drops a token whose ratio passes a border of the clip: with it,
# rounding decides the gradient of a token whose ratio is at the border, which happens on some CPUs.
RUN = Run(model="small", dataset="mixed", skip_ratio=0.5, border=1, mitigation="retrace", seed=0)
EVALUATION = Evaluation(max_new_tokens=12, batch_size=4, dtype="float32", num_samples=2, temperature=1.0)
OPTIMIZATION = {
    "per_device_train_batch_size": 4,
    "bf16": False,
    "gradient_checkpointing": False,
    "learning_rate": 1e-3,
}
# The batches of an epoch are full: several processes would fill the last one with rows of the first.
SFT = Sft(**OPTIMIZATION | {"per_device_train_batch_size": 2}, batch_size=4, num_train_epochs=2.0, save_steps=100)
# A reward that every rank writes down with its completions. Where the file `plant` exists, rank 1 skips other layers.
# Rank 1 gets SIGTERM in the step that the variable STOP names.
REWARDS = """
import json, os, signal
from pathlib import Path
from nested_reft import trainer

RANK = os.environ.get("RANK", "0")
folder = Path(__file__).parent


def vowels(completions, completion_ids, trainer_state, **kwargs):
    seen = folder / os.environ["SEEN"] / f"{trainer_state.global_step}-{RANK}.json"
    seen.parent.mkdir(exist_ok=True)
    seen.write_text(json.dumps(completion_ids))
    if RANK == "1" and os.environ.get("STOP") == str(trainer_state.global_step):
        os.kill(os.getpid(), signal.SIGTERM)
    return [sum(completion.count(vowel) for vowel in "aeiou") / 10 for completion in completions]


choose = trainer.choose_layers


def choose_others(valid, k, seed, step, *others):
    layers = choose(valid, k, seed, step, *others)
    is_planted = step == 7 and Path(os.environ["PLANT"]).exists()
    return next(found for found in (valid[:k], valid[-k:]) if found != layers) if is_planted else layers


if RANK == "1" and choose.__name__ != "choose_others":  # the module is loaded once per job
    trainer.choose_layers = choose_others
"""


@pytest.fixture()
def files(tmp_path, small_model, monkeypatch):
    """Return a folder with a small model, 20 problems, a benchmark and a reward."""
    small_model.generation_config.eos_token_id = list(range(2, 40))  # completions end after 12 tokens on average
    small_model.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "small")
    rows = generate("mixed", "train", 20, seed=3)
    columns = ("problem", "solution", "answer")
    write_rows(tmp_path / "train.jsonl", [{name: getattr(row, name) for name in columns} for row in rows])
    problems = [
        {"benchmark": name, "problem": row.problem, "answer": [row.answer]}
        for name, number in (("one-step", 4), ("algebra", 3))
        for row in generate(name, "benchmark", number, seed=0)
    ]
    write_rows(tmp_path / "benchmarks.jsonl", problems)
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.setenv("SEEN", "seen-one")
    return tmp_path


def settings_of_training(folder: Path) -> Training:
    return Training(
        **OPTIMIZATION,
        max_steps=10,
        prompts_per_step=4,
        num_generations=4,
        max_completion_length=16,
        fixed_length=False,
        loss_type="dapo",
        reward_funcs=[f"{folder}/rewards.py:vowels"],
        save_steps=5,
        log_completions=True,
    )


def completions(folder: Path) -> list[list[list[int]]]:
    """Return the completions of each step, those of rank 0 first."""
    steps = [sorted(folder.glob(f"{step}-*.json")) for step in range(10)]
    return [[tokens for path in paths for tokens in json.loads(path.read_text())] for paths in steps]


def check_training(one: Path, two: Path, seen: tuple[Path, Path]) -> None:
    """Check that a training of two processes is one of one process, up to rounding."""
    rows, others = read_rows(one / "metrics.jsonl"), read_rows(two / "metrics.jsonl")
    assert len(rows) == len(others) == 10
    for row, other in zip(rows, others, strict=True):
        for name in ("data/prompts_sha256", "nesting/skipped_layers", "num_tokens", "completions/mean_length"):
            assert row[name] == other[name], name
        assert row["completions/min_length"] < row["completions/max_length"]
        assert sum(row["sampling/token_weight_counts"]) == sum(other["sampling/token_weight_counts"])
        for name in ("loss", "reward", "grad_norm", "entropy", "sampling/kl", "sampling/ess"):
            assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), (name, row["step"])
    assert completions(seen[0]) == completions(seen[1])
    assert (one / "skipped_layers.jsonl").read_text() == (two / "skipped_layers.jsonl").read_text()
    check_weights(one, two)
    check_completions(one, two)
    assert read_json(two / "run.json")["num_processes"] == 2


def check_completions(one: Path, two: Path) -> None:
    """Check that both runs have recorded the same completions, and that a replay gives what each has logged."""
    columns = ["step", "prompt", "completion", "rewards/vowels"]
    tables = [pd.read_parquet(folder / "completions", columns=[*columns, "rank"]) for folder in (one, two)]
    assert set(tables[0]["rank"]) == {0} and set(tables[1]["rank"]) == {0, 1}
    first, second = (table[columns].sort_values(columns, ignore_index=True) for table in tables)
    assert len(first) == 10 * 16
    pd.testing.assert_frame_equal(first, second)
    for folder in (one, two):
        settings = replaying.settings_of(folder, {})
        rows = list(replaying.replay(folder, ["retrace"], settings.nesting, settings.training))
        assert replaying.largest_difference(rows, read_rows(folder / "metrics.jsonl")) == 0


def check_weights(one: Path, two: Path) -> None:
    """Check that both folders hold a plain model with the same weights, up to rounding."""
    files, other_files = ({path.name for path in (folder / "model").iterdir()} for folder in (one, two))
    assert files == other_files - {"README.md"}  # the command line adds a model card
    weights, others = (load_model(folder / "model", "float32")[0].state_dict() for folder in (one, two))
    for name in weights:
        # Adam divides a gradient by its own size, so that rounding decides the step of a weight whose gradient is 0.
        assert (weights[name] - others[name]).abs().mean() < 1e-5, name


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(files, monkeypatch):
    settings = settings_of_training(files)
    sections = {"run": RUN, "training": settings, "nesting": Nesting(), "prompt": Prompt()}
    warmup = {"run": {"model": "small", "dataset": "mixed", "seed": 0}, "sft": SFT, "prompt": Prompt()}
    inputs = {"model": files / "small", "data": files / "train.jsonl"}

    def record(name: str) -> StageRecord:
        stage = json.loads(canonical(sections))
        return StageRecord(files / name, name.split("-")[0], RUN.model_dump(), stage, {}, None, "test")

    train.train(settings, Nesting(), Prompt(), RUN, *inputs.values(), record("train-one"))
    with_adapter = settings.model_copy(update={"lora": Lora(r=4), "gradient_checkpointing": True})
    of_rank_0 = Nesting(strategy="calibrated")  # rank 0 measures the layers, and the others get its calibration
    monkeypatch.setenv("SEEN", "seen-lora-one")
    train.train(with_adapter, of_rank_0, Prompt(), RUN, *inputs.values(), record("train-lora-one"))
    sft.sft(SFT, Prompt(), files / "small", 0, files / "train.jsonl", record("sft-one"))
    evaluate.evaluate(EVALUATION, Prompt(), str(TINY), files / "benchmarks.jsonl", record("evaluate-one"))

    # 1. By the command line: rank 1 skips other layers at step 7, and the job ends.
    two = files / "train-ddp"
    environment = os.environ | {"OMP_NUM_THREADS": "2", "SEEN": "seen-train-ddp", "PLANT": f"{two}.plant"}
    Path(f"{two}.plant").touch()
    options = ["--model", str(files / "small"), "--data", str(files / "train.jsonl"), "--out", str(two)]
    options += ["--distributed", "ddp", "--num-processes", "2", "--settings", canonical(sections)]
    ended = subprocess.run(
        [sys.executable, "-m", "nested_reft", "train", *options],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    errors = [line for line in ended.stderr.splitlines() if "rror" in line]
    sentence = "rank 1 and rank 0 skip different layers at step 7, so that they would sample from different policies"
    assert ended.returncode == 2 and len(errors) == 1 and sentence in errors[0], ended.stderr
    assert ended.stderr.count("INFO step 7/10: ") == 1 and not (two / "model").exists()
    Path(f"{two}.plant").unlink()
    with pytest.raises(UserError, match=r"was written by 2 process\(es\), and 1 would not continue the same training"):
        check_processes_of(two / "checkpoints/checkpoint-5", is_sharded=False)

    # 2. The same ranks resume this job, and then do the others.
    job = {"stage": "train", "settings": canonical(sections), "num_processes": 2}
    job |= {name: str(path) for name, path in inputs.items()}
    ddp = {**job, "out": str(two), "distributed": "ddp"}
    fsdp = {**job, "out": str(files / "train-fsdp"), "distributed": "fsdp"}
    lora = {"settings": canonical({**sections, "training": with_adapter, "nesting": of_rank_0})}
    lora_ddp = {**ddp, **lora, "out": str(files / "train-lora-ddp")}
    lora_fsdp = {**fsdp, **lora, "out": str(files / "train-lora-fsdp")}
    differ, ended = "skip different layers", "SIGTERM ended the training after step 4 of 10, with a checkpoint"
    jobs = [ddp, {**fsdp, "fails": differ}, fsdp, lora_ddp, {**lora_fsdp, "fails": differ}, lora_fsdp]
    for whole in (lora_ddp, lora_fsdp):
        stopped = {**whole, "out": f"{whole['out']}-stopped"}
        jobs += [{**stopped, "stop": 3, "fails": ended}, stopped]
    for distributed in ("ddp", "fsdp"):
        jobs.append({**job, "stage": "sft", "settings": canonical(warmup), "distributed": distributed})
        jobs[-1]["out"] = str(files / f"sft-{distributed}")
    evaluation = {"run": {"product": "pretrained"}, "evaluation": EVALUATION, "prompt": Prompt()}
    jobs.append({"stage": "evaluate", "settings": canonical(evaluation), "model": str(TINY), "num_processes": 2})
    jobs[-1] |= {
        "benchmarks": str(files / "benchmarks.jsonl"),
        "out": str(files / "evaluate-two"),
        "distributed": "ddp",
    }
    (files / "jobs.json").write_text(json.dumps(jobs))
    for ends in (fsdp, lora_fsdp):
        Path(f"{ends['out']}.plant").touch()
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(ROOT / "tests/ranks.py"), str(files / "jobs.json")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr

    for one in ("", "lora-"):
        for distributed in ("ddp", "fsdp"):
            seen = (files / f"seen-{one}one", files / f"seen-train-{one}{distributed}")
            check_training(files / f"train-{one}one", files / f"train-{one}{distributed}", seen)
    # A training that a signal to one rank has stopped, and that goes on, is bit for bit one that nothing stopped.
    for whole in (Path(lora_ddp["out"]), Path(lora_fsdp["out"])):
        stopped_folder = whole.with_name(f"{whole.name}-stopped")
        weights = [(folder / "model/model.safetensors").read_bytes() for folder in (whole, stopped_folder)]
        assert weights[0] == weights[1] and untimed(whole) == untimed(stopped_folder)
        assert read_json(stopped_folder / "run.json")["attempts"] == 2
    losses = [read_rows(files / f"train-{one}one/metrics.jsonl")[-1]["loss"] for one in ("", "lora-")]
    assert losses[0] != losses[1]
    assert read_json(two / "run.json")["attempts"] == read_json(files / "train-fsdp/run.json")["attempts"] == 2
    losses = [
        [row["loss"] for row in read_rows(files / f"sft-{name}/metrics.jsonl")] for name in ("one", "ddp", "fsdp")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
    for name in ("ddp", "fsdp"):
        check_weights(files / "sft-one", files / f"sft-{name}")
    records, others = (pd.read_parquet(files / f"evaluate-{name}/records.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(records, others)
    assert records["completion"].nunique() > len(records) / 2
