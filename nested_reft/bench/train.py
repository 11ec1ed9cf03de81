"""The speed of training: whole optimizer steps of stock TRL and of Nested-ReFT, and what of a layer skip reaches them.

Each trainer runs its own, unmodified loop: two steps of `trainer.train()` at a time, in turns. The first is not
counted, because `train()` gives memory back before it begins; the second is timed by the clock of training itself.
"""

import copy
import math
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import SaveStrategy
from trl import GRPOTrainer

from nested_reft.bench.harness import environment_info, estimate, quartiles, run_interleaved, summarize
from nested_reft.bench.rollout import BORDER, SHAPES, Settings, bench_device, load, skip_counts
from nested_reft.config.sections import Nesting, Training
from nested_reft.config.study import Run
from nested_reft.data.prompts import format_prompt
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.model.layers import decoder_layers
from nested_reft.stages.loop import StepRecorder, peak_memory_gib
from nested_reft.stages.train import build_trainer

STOCK = "stock"
SAMPLERS = ("engine-compiled", "engine")
PHASES = ("generate", "score", "fwd_bwd", "optimizer")
STEPS = 2  # of a visit; the last is timed
MICRO_BATCH = 16  # at most


@dataclass(frozen=True)
class Variant:
    """Whose steps are timed: stock TRL's, or ours with a sampler and k layers skipped."""

    trainer: str
    num_skipped: int = 0

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.trainer if self.trainer == STOCK else f"{self.trainer}, k = {self.num_skipped}"


class Rows:
    """What `StepRecorder` writes to, in place of a stage's record: the rows of the steps."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep the row."""
        self.rows.append(dict(metrics))


class Bench:
    """Trainers that take the same steps: one of stock TRL, one of ours for each sampler.

    Args:
        settings: what is measured.
        trainers: whose steps.
        folder: where trainers may write; they do not.
    """

    def __init__(self, settings: Settings, trainers: Sequence[str], folder: Path) -> None:
        self.trainers: dict[str, Trainer] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for name in trainers:
            trainer = make_trainer(settings, name, folder)
            notes = Rows()
            trainer.add_callback(StepRecorder(notes, trainer))
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            self.trainers[name], self.rows[name] = trainer, notes.rows

    def step(self, variant: Variant, index: int) -> dict[str, float]:
        """Return the seconds of one optimizer step, `step`, and of its phases as far as they are known.

        Prompts and masks are a function of the index.

        Raises:
            UserError: if a plainer sampler took the place of the one to measure.
        """
        trainer = self.trainers[variant.trainer]
        trainer.num_skipped = variant.num_skipped
        trainer.args.seed = index
        torch.manual_seed(index)
        trainer.train()
        if variant.trainer != STOCK:
            engine = trainer.sampler.engine
            if engine is None or engine.compiled != (variant.trainer == "engine-compiled"):
                raise UserError(f"sampler {variant.trainer} cannot be measured, for the reason in the log")
        row = self.rows[variant.trainer][-1]
        return {phase: row[f"perf/{phase}_s"] for phase in ("step", *PHASES) if f"perf/{phase}_s" in row}


def make_trainer(settings: Settings, name: str, folder: Path) -> Trainer:
    """Return a trainer: stock TRL's has the arguments that ours would have."""
    device = bench_device()
    model, tokenizer = load(settings.model, settings.dtype, device)
    is_random = settings.model in SHAPES
    size = settings.prompts * settings.generations
    chosen: dict[str, Any] = {"sampler": "engine" if name == STOCK else name, "dtype": settings.dtype}
    training = Training(
        **chosen,
        max_steps=STEPS,
        prompts_per_step=settings.prompts,
        num_generations=settings.generations,
        max_completion_length=settings.new_tokens,
        per_device_train_batch_size=math.gcd(MICRO_BATCH, size),
        bf16=device.type == "cuda",
        gradient_checkpointing=device.type == "cuda",
        lr_scheduler_type="constant",
    )
    run = Run(model=settings.model, dataset="mixed", skip_ratio=0.0, mitigation="retrace", seed=0)
    template = "none" if is_random else "qwen-math"
    problems = generate("mixed", "train", 2 * STEPS * settings.prompts, seed=0)
    rows = [{"prompt": format_prompt(row.problem, template), "answer": row.answer} for row in problems]
    ours = build_trainer(training, Nesting(border=BORDER), run, model, tokenizer, rows, folder)
    ours.args.save_strategy = SaveStrategy.NO
    if name != STOCK:
        return ours
    return GRPOTrainer(
        model,
        args=copy.copy(ours.args),
        reward_funcs=ours.reward_funcs,
        train_dataset=ours.train_dataset,
        processing_class=tokenizer,
    )


def efficiency(
    none: Sequence[Mapping[str, float]], some: Sequence[Mapping[str, float]], num_skipped: int, num_layers: int
) -> dict[str, float]:
    """Return the share of the ideal saving that reaches whole steps.

    Ideally all of sampling would take (N - k) / N of its time, and nothing else would change.

    Args:
        none: seconds of steps by phase, no layer skipped, by round.
        some: the same with k layers skipped.
        num_skipped: k.
        num_layers: N.
    """
    return estimate(
        [
            (before["step"] - after["step"]) / (before["generate"] * num_skipped / num_layers)
            for before, after in zip(none, some, strict=True)
        ]
    )


def peak_of(settings: Settings, variant: Variant, threads: int) -> float:
    """Return the peak memory of a process that does nothing but a few steps of one variant, in GiB."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        Bench(settings, [variant.trainer], Path(folder)).step(variant, 0)
    return peak_memory_gib()


def peak_memories(settings: Settings, variants: Sequence[Variant]) -> dict[str, float]:
    """Return the peak memory of each variant in GiB, in a process of its own.

    To be called while this process is small: on Linux a child starts with the peak of its parent.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return {
            variant.name: pool.submit(peak_of, settings, variant, torch.get_num_threads()).result()
            for variant in variants
        }


def measure_train(settings: Settings, peak_memory: bool = False, samplers: Sequence[str] = SAMPLERS) -> dict[str, Any]:
    """Measure all that `bench train` tells of a model.

    Args:
        settings: what is measured; `prompt_length` and `sampler` are not used: prompts are generated problems.
        peak_memory: whether to run each variant once more, in a process of its own.
        samplers: of our trainers.

    Raises:
        UserError: for a model or ratios that cannot be measured.
    """
    device = bench_device()
    model, _ = load(settings.model, settings.dtype, device)
    counts, num_layers = skip_counts(model, settings.skip_ratios, settings.model), len(decoder_layers(model))
    del model
    variants = [Variant(STOCK), *(Variant(sampler, k) for sampler in samplers for k in (0, *counts.values()))]
    results = {"bench": "train", "settings": asdict(settings), **environment_info(device), "num_layers": num_layers}
    results["peak_memory_gib"] = peak_memories(settings, variants) if peak_memory else None
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, [STOCK, *samplers], Path(folder))
        measures = {variant.name: partial(bench.step, variant) for variant in variants}
        orders, samples = run_interleaved(measures, settings.pairs)
    results["steps"] = summarize(
        orders, {name: [row["step"] for row in rows] for name, rows in samples.items()}, STOCK
    )
    results["samples"] = samples
    results["phases"] = {
        name: {phase: quartiles([row[phase] for row in rows]) for phase in rows[0]} for name, rows in samples.items()
    }
    results["skip"] = [
        {
            "sampler": sampler,
            "skip_ratio": ratio,
            "num_skipped": k,
            "efficiency": efficiency(samples[Variant(sampler).name], samples[Variant(sampler, k).name], k, num_layers),
        }
        for sampler in samplers
        for ratio, k in counts.items()
    ]
    return results
