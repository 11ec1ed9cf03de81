"""The plan against measurements: small jobs on this machine, their peak memory and the time of their steps.

Each case is a study of one warm-up or one training. Its job runs as `nested-reft sft` or `nested-reft train` in a
process of its own, as in the workflow, with one thread of a CPU. The efficiencies of the card `cpu` and the memory of
the libraries (`PROCESS_ON_CPU`) were fitted to the cases that are marked so; the other cases show how far the plan is
off. Peak memory is that of the process without that of the libraries.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nested_reft.bench.display import markdown
from nested_reft.bench.harness import run_process
from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.sections import PACKAGE
from nested_reft.config.study import Study
from nested_reft.data.formats import training_row
from nested_reft.data.sources import parsed_rows
from nested_reft.plan.cards import CARDS, GIB, Card
from nested_reft.plan.cluster import PROCESS_ON_CPU
from nested_reft.plan.costs import Cost
from nested_reft.plan.planner import Planner
from nested_reft.records.files import read_rows, write_rows
from nested_reft.records.provenance import collect_provenance
from nested_reft.study.jobs import axes_of, job_paths, stage_of

STEPS = 5  # of each job; the first one is not counted
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# Shapes of models with random weights, beside the embedded models. The tokenizer is that of tiny-28.
SHAPES = {
    "512x8": (512, 1408, 8, 8, 2, 8000),
    "256x12": (256, 704, 12, 4, 2, 32000),
    "1024x4": (1024, 2816, 4, 8, 4, 2000),
    "384x6": (384, 1536, 6, 6, 6, 16000),
}
SMALL: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, "save_steps": 1000}


@dataclass(frozen=True)
class Case:
    """A job to measure.

    Attributes:
        name: the name in the table.
        model: an embedded model, or a key of `SHAPES`.
        sft: changes of the section `sft`; None for a training.
        training: changes of the section `training`; None for a warm-up.
        fitted: whether the rates of the card were fitted to this job.
    """

    name: str
    model: str
    sft: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    fitted: bool = False
    dataset: str = "mixed"

    @property
    def stage(self) -> str:
        """`sft` or `train`."""
        return "train" if self.sft is None else "sft"


def sizes(prompts: int, generations: int, new_tokens: int, micro_batch: int, **others: Any) -> dict[str, Any]:
    """Return the section `training` of a case."""
    return {
        "prompts_per_step": prompts,
        "num_generations": generations,
        "max_completion_length": new_tokens,
        "per_device_train_batch_size": micro_batch,
        **others,
    }


def batch(size: int, micro_batch: int, **others: Any) -> dict[str, Any]:
    """Return the section `sft` of a case."""
    return {"batch_size": size, "per_device_train_batch_size": micro_batch, **others}


LORA = {"lora": {"r": 16}}
CASES = (
    Case("SFT", "tiny-28", sft=batch(16, 16), fitted=True),
    Case("SFT, two micro-batches", "512x8", sft=batch(8, 4), fitted=True),
    Case("training", "tiny-28", training=sizes(12, 4, 26, 16), fitted=True),
    Case("training, long", "256x12", training=sizes(2, 4, 96, 8), fitted=True),
    Case("training", "512x8", training=sizes(4, 4, 32, 8), fitted=True),
    Case("SFT, large batch", "wide-20", sft=batch(48, 48)),
    Case("SFT", "256x12", sft=batch(8, 8), dataset="algebra"),
    Case("SFT, checkpointing", "1024x4", sft=batch(8, 8, gradient_checkpointing=True)),
    Case("SFT, LoRA", "384x6", sft=batch(16, 8, **LORA), fitted=True),
    Case("SFT, LoRA", "1024x4", sft=batch(8, 8, **LORA), dataset="algebra"),
    Case("training, long", "wide-20", training=sizes(4, 4, 96, 16)),
    Case("training", "1024x4", training=sizes(2, 4, 48, 8)),
    Case("training, checkpointing", "384x6", training=sizes(4, 4, 64, 16, gradient_checkpointing=True)),
    Case("training, LoRA", "512x8", training=sizes(4, 4, 64, 8, **LORA)),
    Case(
        "training, LoRA on attention",
        "wide-20",
        training=sizes(4, 4, 64, 16, lora={"r": 8, "target_modules": ["q_proj", "v_proj"]}),
    ),
)


def config_of(name: str) -> dict[str, Any]:
    """Return the config.json of a model with random weights."""
    width, inner, layers, heads, kv_heads, vocabulary = SHAPES[name]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }


MAKE_MODEL = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1])).save_pretrained(sys.argv[1])
"""


def model_path(name: str, folder: Path) -> str:
    """Return the path of a model; one with random weights is made in the folder, by a process of its own."""
    if name not in SHAPES:
        return f"embedded/{name}"
    path = folder / name
    if not path.exists():
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config_of(name)))
        for file in TOKENIZER_FILES:
            (path / file).write_bytes((PACKAGE / "embedded/tiny-28" / file).read_bytes())
        subprocess.run([sys.executable, "-c", MAKE_MODEL, str(path)], check=True, capture_output=True)
    return str(path)


def study_of(case: Case, folder: Path) -> Study:
    """Return the study of a case: one warm-up or one training, of `STEPS` steps."""
    warmup = {**SMALL, "learning_rate": 1e-5} | dict(case.sft or batch(8, 8))
    training = {**SMALL, "max_steps": STEPS} | dict(case.training or sizes(2, 2, 8, 4))
    rows = warmup["batch_size"] * STEPS if case.stage == "sft" else 64
    settings = {
        "study": "bench",
        "models": {case.model: {"path": model_path(case.model, folder)}},
        "datasets": {"data": {"path": f"embedded/{case.dataset}", "size": rows}},
        "benchmarks": {"benchmark": {"path": "embedded/one-step", "size": 8}},
        "grid": {"model": case.model, "dataset": "data", "skip_ratio": 0.15, "mitigation": "retrace"},
        "sft": {"num_train_epochs": 1, **warmup},
        "training": training,
        "jobs": {"threads": 1, "gpus": 0},
    }
    return parse_settings(Study, settings)


def measured(case: Case, study: Study, folder: Path) -> dict[str, Any]:
    """Run the job of a case; return its peak memory in bytes and the mean seconds of its steps by phase.

    Raises:
        UserError: the job fails.
    """
    model, data = study.models[case.model], folder / "data.jsonl"
    write_rows(data, parsed_rows(study.datasets["data"], training_row))
    run: dict[str, Any] = {"model": case.model, "dataset": "data", "seed": 0}
    settings: dict[str, Any] = {"prompt": study.prompt}
    if case.stage == "sft":
        settings |= {"run": run, "sft": study.sft}
    else:
        run |= {"skip_ratio": 0.0, "border": 0, "mitigation": "base"}
        settings |= {"run": run, "training": study.training, "nesting": study.nesting}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "nested_reft", case.stage, "--settings", canonical(settings)]
        command += ["--model", str(model.local_path), "--data", str(data), "--out", f"{out}/job"]
        environment = {"OMP_NUM_THREADS": str(study.jobs.threads), "CUDA_VISIBLE_DEVICES": ""}
        usage = run_process(command, environment=environment)
        steps = read_rows(Path(out) / "job/metrics.jsonl")[1:]
    phases = {
        name: sum(row.get(f"perf/{name}_s", 0.0) for row in steps) / len(steps)
        for name in ("step", "generate", "score", "fwd_bwd", "optimizer")
    }
    return {"memory": usage.peak_bytes, "seconds": phases, "wall": usage.seconds, "cpu": usage.cpu_seconds}


MEASURE_RATES = """
import json, time, torch
torch.set_num_threads(1)
def fastest(call, repeats=10):
    times = []
    for _ in range(repeats):
        started = time.perf_counter(); call(); times.append(time.perf_counter() - started)
    return min(times)
rates = {}
for dtype in (torch.float32, torch.bfloat16):
    a = torch.randn(1024, 1024).to(dtype)
    rates[str(dtype).removeprefix("torch.")] = 2 * 1024**3 / fastest(lambda: a @ a)
source = torch.ones(2**26)
target = torch.empty_like(source)
print(json.dumps({"flops": rates, "bandwidth": 2 * source.nbytes / fastest(lambda: target.copy_(source))}))
"""


def cpu_of_this_machine() -> Card:
    """Return the card `cpu` with the rates of one core of this machine, measured in a process of its own."""
    output = subprocess.run([sys.executable, "-c", MEASURE_RATES], check=True, capture_output=True, text=True).stdout
    return CARDS["cpu"]._replace(source="measured now", **json.loads(output))


def planned(case: Case, study: Study, card: Card) -> Cost:
    """Return the plan of the job of a case."""
    planner = Planner(study, {case.model: card})
    path = next(
        path
        for path in job_paths(study)
        if stage_of(path) == case.stage and axes_of(path).get("skip_ratio", "0.0") == "0.0"
    )
    cost = planner.cost(path)
    assert cost is not None  # all shapes are known
    return cost


class Comparison(NamedTuple):
    """A case, its plan, and its measurement."""

    case: Case
    cost: Cost
    measured: dict[str, Any]

    @property
    def memory(self) -> tuple[float, float]:
        """The planned and the measured peak memory in bytes, without that of the libraries."""
        return self.cost.peak.total, self.measured["memory"] - PROCESS_ON_CPU

    @property
    def step_seconds(self) -> tuple[float, float]:
        """The planned and the measured time of a step."""
        phases = [time for phase, time in self.cost.seconds.items() if phase not in ("start", "checkpoints")]
        return sum(phases) / STEPS, self.measured["seconds"]["step"]

    @property
    def row(self) -> dict[str, str]:
        """The row of the table."""
        (memory, peak), (step, time_of_step) = self.memory, self.step_seconds
        return {
            "job": self.case.name,
            "model": self.case.model,
            "": "fitted" if self.case.fitted else "",
            "GiB planned": f"{memory / GIB:.2f}",
            "GiB measured": f"{peak / GIB:.2f}",
            "GiB off by": f"{memory / peak - 1:+.0%}",
            "step planned, s": f"{step:.2f}",
            "step measured, s": f"{time_of_step:.2f}",
            "step off by": f"{step / time_of_step - 1:+.0%}",
            "share of a core": f"{self.measured['cpu'] / self.measured['wall']:.2f}",
        }


def compare(cases: Sequence[Case], card: Card) -> list[Comparison]:
    """Measure and plan some cases on the card `cpu`."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for case in cases:
            study = study_of(case, Path(name))
            found.append(Comparison(case, planned(case, study, card), measured(case, study, Path(name))))
    return found


def measure_plan() -> dict[str, Any]:
    """Return the rates of this machine, and plan and measurement of all cases."""
    card = cpu_of_this_machine()
    comparisons = compare(CASES, card)
    return {
        "bench": "plan",
        "provenance": collect_provenance(),
        "card": card._asdict(),
        "cases": [
            {"row": one.row, "memory": one.memory, "step_seconds": one.step_seconds, "measured": one.measured}
            for one in comparisons
        ],
    }


def plan_table(results: Mapping[str, Any]) -> str:
    """Return the results of `bench plan` as text."""
    card = results["card"]
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in card["flops"].items())
    rates += f", {card['bandwidth'] / 1e9:.0f} GB/s"
    return f"One core: {rates}\n\n{markdown([case['row'] for case in results['cases']])}"
