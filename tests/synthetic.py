"""The files that a study leaves, made up: what an analysis reads, without a single training."""

from pathlib import Path

import numpy as np
import pandas as pd

from nested_reft.config.layout import MEASURE_SPEED, TRAIN, products
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study, expand_grid
from nested_reft.off_policy_metrics import WEIGHT_BINS
from nested_reft.records.files import write_json, write_rows, write_versioned_json
from nested_reft.report.sources import PHASES
from nested_reft.stages.evaluate import evaluation_metrics, write_records

SIZES = {"one-step": 60, "multi-step": 40, "algebra": 50}
PROVENANCE = {
    "git_commit": "0" * 40,
    "git_dirty": False,
    "python": "3.11.0",
    "packages": {"torch": "2.13.0", "trl": "1.16.0"},
    "hardware": {"machine": "x86_64", "cpu_count": 2, "gpus": []},
}


def study(seeds: int = 2, models: int = 2, datasets: int = 3, borders: int = 1) -> Study:
    """Return the configuration of a made-up study."""
    named = {f"{width}-28": {"path": "embedded/tiny-28"} for width in ("small", "wide")[:models]}
    sets = ["one-step", "multi-step", "algebra"][:datasets]
    return parse_settings(
        Study,
        {
            "study": "synthetic",
            "models": named,
            "datasets": {name: {"path": f"embedded/{name}", "size": 100} for name in sets},
            "benchmarks": {name: {"path": f"embedded/{name}", "size": size} for name, size in SIZES.items()},
            "grid": {
                "model": list(named),
                "dataset": sets,
                "border": list(range(1, 1 + borders)),
                "seed": list(range(seeds)),
            },
            "training": {"max_steps": 40},
            "analysis": {"speed_rounds": 8},
        },
    )


def write(config: Study, results: Path, effect: float = -0.5, steps: int = 40, slope: float = 0.0) -> None:
    """Write results in which `practical` at 15 % differs from the baseline by `effect`, and all by slope x skip ratio.

    Both are in probits: 0.1 are about 3 points of accuracy.
    """
    rng = np.random.default_rng(0)
    problems = [(name, index) for name, size in SIZES.items() for index in range(size)]
    difficulty = rng.normal(size=len(problems)) - 0.7
    for model in config.grid.model:
        write_json_at(results / f"pretrained/model~{model}/model.json", {"path": "x", "num_layers": 28, "width": 64})
    for path, product in products(config):
        shift = {"pretrained": -0.6, "sft": -0.3, "train": 0.0}[product["product"]]
        shift += 0.05 * rng.normal() if product["product"] == "train" else 0.0
        if product.get("mitigation") == "practical" and product["skip_ratio"] == 0.15:
            shift += effect
        shift += slope * product.get("skip_ratio", 0.0)
        correct = 0.4 * rng.normal(size=len(problems)) + shift > difficulty
        records = pd.DataFrame(problems, columns=["benchmark", "problem_id"])
        records = records.assign(sample=0, correct=correct, how="number", length=20, truncated=False)
        asked = [f"What is $x$ if $x+{index}={2 * index}$?" for index in records["problem_id"]]
        given = records["problem_id"] + np.where(correct, 0, 1)
        records = records.assign(
            problem=asked,
            answer=[[str(index)] for index in records["problem_id"]],
            completion=[f"x={x}. \\boxed{{{x}}}" for x in given],
        )
        (results / "evaluate" / path).mkdir(parents=True)
        write_records(records, results / "evaluate" / path)
        write_versioned_json(results / "evaluate" / path / "metrics.json", evaluation_metrics(records))
        write_versioned_json(results / "evaluate" / path / "run.json", {"stage": "evaluate", "settings": {}})
    for model in config.grid.model if config.analysis.speed_rounds else []:
        write_speed(config, results / MEASURE_SPEED.format(model=model))
    for path, product in products(config):
        if product["product"] == "sft":
            losses = 0.5 * np.exp(-np.arange(30) / 10) + 0.1 + 0.01 * rng.normal(size=30)
            (results / path).mkdir(parents=True)
            rows = [{"step": step + 1, "time": 1767225600.0 + step, "loss": loss} for step, loss in enumerate(losses)]
            write_rows(results / path / "metrics.jsonl", rows)
    for run in expand_grid(config):
        folder = results / TRAIN.format(**run.model_dump())
        folder.mkdir(parents=True)
        k = round(28 * run.skip_ratio)
        speed = 1000 * 28 / (28 - 0.8 * k) * (1 + 0.01 * rng.normal())
        generate = 40 * 1000 / speed
        rewards = 0.4 + 0.3 * np.arange(steps) / steps - 2 * run.skip_ratio * 0.3 + 0.05 * rng.normal(size=steps)
        noise = np.abs(rng.normal(size=steps))
        write_rows(
            folder / "metrics.jsonl",
            [
                {
                    "step": step + 1,
                    "time": 1767225600.0 + step,
                    "reward": rewards[step],
                    "sampling/kl": 0.002 + 4 * run.skip_ratio**1.5 * noise[step],
                    "sampling/acceptance_rate": 1 - run.skip_ratio * noise[step] / 2,
                    "sampling/ess": 1 - run.skip_ratio * noise[step],
                    "sampling/k3_kl": 0.002 + 3.8 * run.skip_ratio**1.5 * noise[step],
                    "entropy": 0.3 - 0.2 * step / steps + 0.02 * noise[step],
                    "perf/step_s": (generate + 33.0) / steps * (1 + 0.05 * noise[step]),
                    "perf/generate_s": generate / steps,
                    "nesting/skipped_layers": sorted(rng.choice(range(1, 27), size=k, replace=False).tolist()),
                    "sampling/token_weight_counts": token_weight_counts(run.skip_ratio, run.mitigation),
                    "perf/generated_tok_s": speed,
                }
                for step in range(steps)
            ],
        )
        phases = dict(zip(PHASES, (generate, 1.0, 30.0, 2.0), strict=True))
        seconds = sum(phases.values()) * (1 + 0.01 * rng.normal())
        totals = {"mean_reward": rewards.mean(), "token_speed_tok_s": 60_000 / seconds, "train_runtime_s": seconds}
        write_versioned_json(folder / "metrics.json", totals | phases)
        facts = {"num_layers": 28, "num_skipped": k, "layer_parameters": 50_000, "lm_head_parameters": 250_000}
        times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T01:00:00+00:00"}
        identity = {
            "uid": f"{folder}@2026",
            "study": config.study,
            "stage": "train",
            "run": run.model_dump(),
            "settings": {},
        }
        write_versioned_json(folder / "run.json", identity | facts | times | {"provenance": PROVENANCE})


def write_speed(config: Study, folder: Path, slope: float = 0.9) -> None:
    """Write a measurement of speed: for each 1 % of the layers skipped, roll-outs are `slope` % faster."""
    rng = np.random.default_rng(1)
    counts = [0, *(round(28 * ratio) for ratio in config.grid.skip_ratio)]
    rows = []
    for index in range(config.analysis.speed_rounds):
        drift = 1 + index / 10
        seconds = {k: drift / (1 + slope * k / 28) * (1 + 0.002 * rng.normal()) for k in counts}
        times = {f"seconds/{k}_skipped": value for k, value in seconds.items()}
        rows.append({"step": index + 1, "time": 1767225600.0, "prompt_tokens": 500, **times})
    folder.mkdir(parents=True)
    write_rows(folder / "metrics.jsonl", rows)
    write_versioned_json(folder / "metrics.json", {"completion_tokens": 1000.0})
    facts = {"num_layers": 28, "layer_parameters": 50_000, "lm_head_parameters": 250_000}
    facts |= {"sampler": config.training.sampler, "device": "CPU", "threads": 1}
    write_versioned_json(folder / "run.json", {"stage": "measure_speed", "provenance": PROVENANCE, **facts})


def token_weight_counts(skip_ratio: float, mitigation: str) -> list[int]:
    """Return counts of weights around 1, which spread with the skip ratio; `practical` has the weight 1 alone."""
    spread = 1e-3 if mitigation == "practical" else 0.1 + 8 * skip_ratio
    centers = np.linspace(-16, 16, len(WEIGHT_BINS))
    return np.round(1000 * np.exp(-((centers / spread) ** 2) / 2)).astype(int).tolist()


def write_json_at(path: Path, content: dict) -> None:
    """Write a JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
