"""Measure roll-outs and training at the paper's shapes on one GPU, in one call of at most nine minutes.

    python -m nested_reft.bench.gpu --out reports/benchmarks/gpu.json
    python nested_reft/bench/gpu.py --out reports/benchmarks/gpu.json

Roll-outs need torch, transformers, matplotlib and scipy; training also needs the other dependencies of the package,
and is left out without TRL. Weights are random, which does not change speed. The engine's log-probs are first checked
against a full forward. Results are written after each part, so that an interrupted run keeps them, and
`not_measured` names the parts that did not fit into the budget or failed. `--toy` runs everything on tiny shapes, on
a CPU too.
"""

import argparse
import gc
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package of this file, installed or not
from nested_reft.bench.display import rollout_table, speed_figure, train_table
from nested_reft.bench.harness import environment_info
from nested_reft.bench.rollout import (
    MODEL_SHAPES,
    RolloutBenchSettings,
    Rollouts,
    against_generate,
    bandwidth_bound,
    bench_device,
    copy_bandwidth,
    load,
    log_prob_errors,
    new_skip_set,
    skip_gain,
)
from nested_reft.nesting import num_skipped
from nested_reft.records.files import write_json
from nested_reft.report import style

SEQUENCES = {"prompts": 16, "generations": 8, "prompt_length": 200, "new_tokens": 256}
TOY = {"prompts": 2, "generations": 2, "prompt_length": 4, "new_tokens": 20}
TOY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
TRAINED = "qwen2.5-1.5b"  # the optimizer state of the larger one does not fit into memory
# Upper bounds of the seconds that each part takes; a part does not start unless that much time is left.
MAX_SECONDS = {
    "model": 20,
    "generate": 130,
    "check": 10,
    "skip": 70,
    "new_skip_set": 35,
    "bandwidth": 5,
    "train": 150,
    "memory": 120,
}


class Budget:
    """Runs parts as long as there is time, and records why a part was left out or failed."""

    def __init__(self, limit: float, write: Callable[[], None]) -> None:
        self.deadline, self.write = time.perf_counter() + limit, write
        self.not_measured: dict[str, str] = {}

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        """Return the result of the part, or None if there is no time for it or if it fails."""
        left = self.deadline - time.perf_counter()
        result = None
        if left < MAX_SECONDS[name.rpartition("/")[2]]:
            self.not_measured[name] = f"{max(0, left):.0f} s were left"
        else:
            print(f"{name}: {left:.0f} s are left", flush=True)
            self.write()
            gc.collect()  # frees the memory of the last part
            torch.cuda.empty_cache()
            try:
                result = part()
            except Exception as error:  # the other parts are still worth measuring
                self.not_measured[name] = f"{type(error).__name__}: {error}"
        return result


def measure_shape(settings: RolloutBenchSettings, results: dict[str, Any], budget: Budget) -> None:
    """Measure roll-outs of one shape, and add each part to `results` when it is done."""
    name, device = settings.model, bench_device()

    def build() -> Rollouts:
        model, tokenizer = load(name, settings.dtype, device)
        num_layers = model.config.num_hidden_layers
        counts = {ratio: num_skipped(num_layers, ratio) for ratio in settings.skip_ratios}
        return Rollouts(settings, model, tokenizer, counts)

    rollouts = budget.run(f"{name}/model", build)
    if rollouts is None:
        return
    rounds = max(2, settings.rounds // 2)  # `generate` is slow
    results["generate"] = budget.run(
        f"{name}/generate", lambda: against_generate(rollouts, ["engine-compiled", "engine"], rounds)
    )
    results["log_prob_errors"] = budget.run(f"{name}/check", lambda: log_prob_errors(rollouts))
    results["skip"] = budget.run(f"{name}/skip", lambda: skip_gain(rollouts))
    results["new_skip_set"] = budget.run(f"{name}/new_skip_set", lambda: new_skip_set(rollouts))
    if results["skip"] is not None:
        size = 2**20 if device.type == "cpu" else 2**30
        results["bandwidth"] = budget.run(
            f"{name}/bandwidth", lambda: bandwidth_bound(rollouts, results["skip"], copy_bandwidth(device, size))
        )


def train_part(settings: RolloutBenchSettings) -> dict[str, Any]:
    """Measure GRPO steps of Nested-ReFT and of stock TRL."""
    from nested_reft.bench.train import measure_train

    return measure_train(settings, samplers=[settings.sampler])


def memory_part(settings: RolloutBenchSettings) -> dict[str, float]:
    """Measure the peak memory of GRPO steps, each trainer in a process of its own."""
    from nested_reft.bench.train import STOCK, Variant, peak_memories

    return peak_memories(settings, [Variant(STOCK), Variant(settings.sampler)])


def main() -> None:
    """Measure the parts that fit into the budget; write the results and a figure next to them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/gpu.json"), help="JSON file to write")
    parser.add_argument(
        "--budget", type=float, default=520, help="limit in seconds; a part does not start if it could exceed it"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=list(MODEL_SHAPES),
        default=list(MODEL_SHAPES),
        help="the shapes to measure; both by default",
    )
    parser.add_argument("--toy", action="store_true", help="tiny shapes, on a CPU too")
    arguments = parser.parse_args()
    if not arguments.toy and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --toy runs on a CPU")
    if arguments.toy:
        for shape in MODEL_SHAPES.values():
            shape |= TOY_SHAPE | {"num_hidden_layers": 8, "vocab_size": 487}
        MAX_SECONDS.update(dict.fromkeys(MAX_SECONDS, 0))
    sizes = TOY if arguments.toy else SEQUENCES
    ratios = [0.125, 0.25] if arguments.toy else [0.05, 0.10, 0.15]  # 1, 3 and 4 of 28
    dtype = "float32" if arguments.toy else "bfloat16"
    settings = RolloutBenchSettings(
        "", ratios, **sizes, dtype=dtype, sampler="engine-compiled", rounds=2 if arguments.toy else 6
    )

    has_trl = importlib.util.find_spec("trl") is not None
    sampler = "engine" if arguments.toy else "engine-compiled"
    trained = replace(settings, model=TRAINED, skip_ratios=ratios[-1:], rounds=2, sampler=sampler)

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"bench": "gpu", **environment_info(bench_device()), "rollouts": [], "train": None}

    def write() -> None:
        write_json(arguments.out, results | {"not_measured": budget.not_measured})

    budget = Budget(arguments.budget, write)
    for model in arguments.shapes:
        model_settings = replace(settings, model=model)
        parts = ("generate", "skip", "new_skip_set", "bandwidth")
        # On a GPU, the weights themselves are in bfloat16, and a copy in that type would save nothing.
        entries = {"settings": asdict(model_settings)} | dict.fromkeys((*parts, "weight_copy"))
        results["rollouts"].append(entries)
        measure_shape(model_settings, results["rollouts"][-1], budget)
        if model == TRAINED and has_trl:
            results["train"] = budget.run("train", lambda: train_part(trained))
    if TRAINED in arguments.shapes and has_trl and not arguments.toy and results["train"]:
        results["train"]["peak_memory_gib"] = budget.run("memory", lambda: memory_part(trained))
    if not has_trl:
        budget.not_measured["train"] = "trl is not installed"
    write()

    complete = [
        result for result in results["rollouts"] if all(result[part] for part in ("generate", "skip", "new_skip_set"))
    ]
    for result in complete:
        print(f"\n{result['settings']['model']}\n\n{rollout_table(result)}")
    if results["train"]:
        print(f"\ntraining, {results['train']['settings']['model']}\n\n{train_table(results['train'])}")
    for name, why in budget.not_measured.items():
        print(f"not measured: {name} ({why})")
    if complete:
        style.save(speed_figure(complete), arguments.out)


if __name__ == "__main__":
    main()
