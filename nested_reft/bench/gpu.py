"""Measure roll-outs and training at the paper's shapes on one GPU, in one call of at most nine minutes.

    python nested_reft/bench/gpu.py --out reports/benchmarks/gpu.json

Weights are random, which changes nothing about speed. The engine's log-probs are first checked against a scoring
forward. Parts that do not fit into the budget are named in `not_measured`; what was measured is written after each
part, so that nothing is lost with the machine. `--toy` runs everything on tiny shapes, on a CPU too.
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

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package beside this file, installed or not
from nested_reft.bench.display import rollout_table, speed_figure, train_table
from nested_reft.bench.harness import environment_info
from nested_reft.bench.rollout import (
    SHAPES,
    Rollouts,
    Settings,
    against_generate,
    bandwidth_bound,
    bench_device,
    copy_bandwidth,
    load,
    log_prob_errors,
    new_mask,
    skip_gain,
)
from nested_reft.records.files import write_json
from nested_reft.report import figures as plots

SEQUENCES = {"prompts": 16, "generations": 8, "prompt_length": 200, "new_tokens": 256}
TOY = {"prompts": 2, "generations": 2, "prompt_length": 4, "new_tokens": 20}
TOY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
TRAINED = "qwen2.5-1.5b"  # the optimizer state of the other one does not fit
# Seconds that a part may need at most, from which it is told whether it still fits: on the safe side.
NEEDS = {
    "model": 20,
    "generate": 130,
    "check": 10,
    "skip": 70,
    "mask": 35,
    "bandwidth": 5,
    "train": 150,
    "memory": 120,
}


class Budget:
    """Runs parts as long as there is time; says which parts were left out, and why others failed."""

    def __init__(self, limit: float, write: Callable[[], None]) -> None:
        self.deadline, self.write = time.perf_counter() + limit, write
        self.not_measured: dict[str, str] = {}

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        """Return what the part measures, or None if there is no time for it or it fails."""
        left = self.deadline - time.perf_counter()
        result = None
        if left < NEEDS[name.rpartition("/")[2]]:
            self.not_measured[name] = f"{max(0, left):.0f} s were left"
        else:
            print(f"{name}: {left:.0f} s are left", flush=True)
            self.write()
            gc.collect()  # what the last part held
            torch.cuda.empty_cache()
            try:
                result = part()
            except Exception as error:  # the other parts are worth having
                self.not_measured[name] = f"{type(error).__name__}: {error}"
        return result


def measure_shape(settings: Settings, results: dict[str, Any], budget: Budget) -> None:
    """Measure roll-outs of one shape; parts enter `results` as they are done."""
    name, device = settings.model, bench_device()
    rollouts = budget.run(f"{name}/model", lambda: Rollouts(settings, *load(name, settings.dtype, device)))
    if rollouts is None:
        return
    pairs = max(2, settings.pairs // 2)  # `generate` is slow
    results["generate"] = budget.run(
        f"{name}/generate", lambda: against_generate(rollouts, ["engine-compiled", "engine"], pairs)
    )
    results["log_prob_errors"] = budget.run(f"{name}/check", lambda: log_prob_errors(rollouts))
    results["skip"] = budget.run(f"{name}/skip", lambda: skip_gain(rollouts))
    results["mask"] = budget.run(f"{name}/mask", lambda: new_mask(rollouts))
    if results["skip"] is not None:
        size = 2**20 if device.type == "cpu" else 2**30
        results["bandwidth"] = budget.run(
            f"{name}/bandwidth", lambda: bandwidth_bound(rollouts, results["skip"], copy_bandwidth(device, size))
        )


def train_part(settings: Settings) -> dict[str, Any]:
    """Measure whole GRPO steps against stock TRL's."""
    from nested_reft.bench.train import measure_train

    return measure_train(settings, samplers=[settings.sampler])


def memory_part(settings: Settings) -> dict[str, float]:
    """Measure the peak memory of GRPO steps, each trainer in a process of its own."""
    from nested_reft.bench.train import STOCK, Variant, peak_memories

    return peak_memories(settings, [Variant(STOCK), Variant(settings.sampler)])


def main() -> None:
    """Measure what fits into the budget and write it, with a figure beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/gpu.json"), help="where to write")
    parser.add_argument("--budget", type=float, default=520, help="seconds; no part begins that may take longer")
    parser.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="which; both by default"
    )
    parser.add_argument("--toy", action="store_true", help="tiny shapes, on a CPU too")
    given = parser.parse_args()
    if not given.toy and not torch.cuda.is_available():
        parser.error("no GPU is in sight; --toy runs on a CPU")
    if given.toy:
        for shape in SHAPES.values():
            shape |= TOY_SHAPE | {"num_hidden_layers": 8, "vocab_size": 487}
        NEEDS.update(dict.fromkeys(NEEDS, 0))
    sizes = TOY if given.toy else SEQUENCES
    ratios = [0.125, 0.25] if given.toy else [0.05, 0.10, 0.15]  # 1, 3 and 4 of 28
    dtype = "float32" if given.toy else "bfloat16"
    settings = Settings("", ratios, **sizes, dtype=dtype, sampler="engine-compiled", pairs=2 if given.toy else 6)

    trl_is_here = importlib.util.find_spec("trl") is not None
    sampler = "engine" if given.toy else "engine-compiled"
    trained = replace(settings, model=TRAINED, skip_ratios=ratios[-1:], pairs=2, sampler=sampler)

    given.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"bench": "gpu", **environment_info(bench_device()), "rollouts": [], "train": None}

    def write() -> None:
        write_json(given.out, results | {"not_measured": budget.not_measured})

    budget = Budget(given.budget, write)
    for model in given.shapes:
        of_model = replace(settings, model=model)
        of_shape: dict[str, Any] = {"settings": asdict(of_model), "generate": None, "skip": None, "mask": None}
        results["rollouts"].append(of_shape | {"renewal": None, "bandwidth": None})
        measure_shape(of_model, results["rollouts"][-1], budget)
        if model == TRAINED and trl_is_here:
            results["train"] = budget.run("train", lambda: train_part(trained))
    if TRAINED in given.shapes and trl_is_here and not given.toy and results["train"]:
        results["train"]["peak_memory_gib"] = budget.run("memory", lambda: memory_part(trained))
    if not trl_is_here:
        budget.not_measured["train"] = "trl is not installed"
    write()

    whole = [
        of_shape for of_shape in results["rollouts"] if all(of_shape[part] for part in ("generate", "skip", "mask"))
    ]
    for of_shape in whole:
        print(f"\n{of_shape['settings']['model']}\n\n{rollout_table(of_shape)}")
    if results["train"]:
        print(f"\ntraining, {results['train']['settings']['model']}\n\n{train_table(results['train'])}")
    for name, why in budget.not_measured.items():
        print(f"not measured: {name} ({why})")
    if whole:
        plots.save(speed_figure(whole), given.out)


if __name__ == "__main__":
    main()
