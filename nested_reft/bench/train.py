"""The speed of training: optimizer steps of stock TRL and of Nested-ReFT.

Stock TRL's steps show how much of the sampling speed-up survives in a whole step. Each trainer runs its own,
unmodified loop: two steps of `trainer.train()` at a time, interleaved with the other trainers. The first step is not
counted, because `train()` frees memory before it; the second is timed by the recorder of a training stage.
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
from nested_reft.bench.rollout import BORDER, MODEL_SHAPES, RolloutBenchSettings, bench_device, load, skip_counts
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
# After the name of a sampler: autocast in the update and a copy to sample from, and prompts that an update reads once.
IN_BFLOAT16, SHARED_PROMPTS = ", bfloat16", ", shared prompts"
STEP_PHASES = ("generate", "score", "fwd_bwd", "optimizer")
STEPS = 2  # of each call of `train()`; the last one is timed


@dataclass(frozen=True)
class Variant:
    """A trainer whose steps are timed: stock TRL's, or a nested one with a sampler and k skipped layers."""

    trainer: str  # STOCK, or the name of a sampler, perhaps with IN_BFLOAT16 and SHARED_PROMPTS
    num_skipped: int = 0

    @property
    def name(self) -> str:
        """The name of the variant in tables."""
        return self.trainer if self.trainer == STOCK else f"{self.trainer}, k = {self.num_skipped}"


class StepRows:
    """Keeps the rows that `StepRecorder` writes, in place of the record of a stage."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep the metrics of a step."""
        self.rows.append(dict(metrics))


class TrainerBench:
    """Trainers that take the same steps: stock TRL's, and a nested one for each sampler.

    Args:
        settings: the settings of the measurement.
        trainers: STOCK and names of samplers.
        folder: the output folder of the trainers, which stays empty.
    """

    def __init__(self, settings: RolloutBenchSettings, trainers: Sequence[str], folder: Path) -> None:
        self.trainers: dict[str, Trainer] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for name in trainers:
            trainer = make_trainer(settings, name, folder)
            step_rows = StepRows()
            trainer.add_callback(StepRecorder(step_rows, trainer))
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            self.trainers[name], self.rows[name] = trainer, step_rows.rows

    def step(self, variant: Variant, index: int) -> dict[str, float]:
        """Return the seconds of one optimizer step, `step`, and of each of its phases that the trainer times.

        Prompts and skipped layers are a function of the index.

        Raises:
            UserError: if the sampler does not support the model, and another one was used.
        """
        trainer = self.trainers[variant.trainer]
        trainer.num_skipped = variant.num_skipped
        trainer.args.seed = index
        torch.manual_seed(index)
        trainer.train()
        if variant.trainer != STOCK:
            engine = trainer.sampler.engine
            if engine is None or engine.compiled != variant.trainer.startswith("engine-compiled"):
                raise UserError(f"sampler {variant.trainer} cannot be measured, for the reason in the log")
        row = self.rows[variant.trainer][-1]
        return {phase: row[f"perf/{phase}_s"] for phase in ("step", *STEP_PHASES) if f"perf/{phase}_s" in row}


def make_trainer(settings: RolloutBenchSettings, name: str, folder: Path) -> Trainer:
    """Return a trainer by name. The trainer of stock TRL has the same arguments as the nested trainers."""
    device = bench_device()
    model, tokenizer = load(settings.model, settings.dtype, device)
    is_random = settings.model in MODEL_SHAPES
    size = settings.prompts * settings.generations
    sampler, in_bfloat16 = name.split(",")[0], IN_BFLOAT16 in name
    names: dict[str, Any] = {"sampler": "engine" if name == STOCK else sampler, "dtype": settings.dtype}
    if in_bfloat16:
        names["sampling_dtype"] = "bfloat16"
    training = Training(
        **names,
        max_steps=STEPS,
        prompts_per_step=settings.prompts,
        num_generations=settings.generations,
        max_completion_length=settings.new_tokens,
        per_device_train_batch_size=math.gcd(settings.micro_batch, size),
        share_prompts=SHARED_PROMPTS in name,
        bf16=in_bfloat16 or device.type == "cuda",
        gradient_checkpointing=device.type == "cuda",
        lr_scheduler_type="constant",
    )
    run = Run(model=settings.model, dataset="mixed", skip_ratio=0.0, border=BORDER, mitigation="retrace", seed=0)
    template = "none" if is_random else "qwen-math"
    problems = generate("mixed", "train", 2 * STEPS * settings.prompts, seed=0)
    rows = [{"prompt": format_prompt(row.problem, template), "answer": row.answer} for row in problems]
    nested_trainer = build_trainer(training, Nesting(), run, model, tokenizer, rows, folder)
    nested_trainer.args.save_strategy = SaveStrategy.NO
    if name != STOCK:
        return nested_trainer
    return GRPOTrainer(
        model,
        args=copy.copy(nested_trainer.args),
        reward_funcs=nested_trainer.reward_funcs,
        train_dataset=nested_trainer.train_dataset,
        processing_class=tokenizer,
    )


def efficiency(
    unskipped: Sequence[Mapping[str, float]],
    skipped: Sequence[Mapping[str, float]],
    num_skipped: int,
    num_layers: int,
) -> dict[str, float]:
    """Return the time that skipping saves in a whole step, as a share of the ideal saving.

    Ideally sampling would take (N - k) / N of its time, and the other phases would not change.

    Args:
        unskipped: the seconds of a step by phase, no layer skipped, one per round.
        skipped: the seconds of a step by phase, k layers skipped, one per round.
        num_skipped: k.
        num_layers: N.
    """
    return estimate(
        [
            (before["step"] - after["step"]) / (before["generate"] * num_skipped / num_layers)
            for before, after in zip(unskipped, skipped, strict=True)
        ]
    )


def peak_of(settings: RolloutBenchSettings, variant: Variant, threads: int) -> float:
    """Return the peak memory in GiB of a process that only takes a few steps of one variant."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        TrainerBench(settings, [variant.trainer], Path(folder)).step(variant, 0)
    return peak_memory_gib()


def peak_memories(settings: RolloutBenchSettings, variants: Sequence[Variant]) -> dict[str, float]:
    """Return the peak memory of each variant in GiB, measured in a process of its own.

    Call this while the current process is small: on Linux a child process starts with the peak of its parent.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return {
            variant.name: pool.submit(peak_of, settings, variant, torch.get_num_threads()).result()
            for variant in variants
        }


def measure_train(
    settings: RolloutBenchSettings,
    peak_memory: bool = False,
    samplers: Sequence[str] = SAMPLERS,
    in_bfloat16: bool = False,
    share_prompts: bool = False,
) -> dict[str, Any]:
    """Measure the optimizer steps of a model: all parts of `bench train`.

    Args:
        settings: the settings of the measurement. Prompts are generated problems, so `prompt_length` is not used;
            neither is `sampler`.
        peak_memory: whether to measure peak memory too, which runs each variant once more.
        samplers: the samplers of the nested trainers.
        in_bfloat16: whether to measure the first sampler also with bfloat16 in the update, by autocast, and in the
            weights that are sampled from.
        share_prompts: whether to measure the first sampler also with updates that read each prompt once; in bfloat16
            if that is measured.

    Raises:
        UserError: for a model or skip ratios that cannot be measured.
    """
    device = bench_device()
    others = [IN_BFLOAT16] * in_bfloat16
    others += [f"{IN_BFLOAT16 * in_bfloat16}{SHARED_PROMPTS}"] * share_prompts
    samplers = [samplers[0], *(f"{samplers[0]}{other}" for other in others), *samplers[1:]]
    model, _ = load(settings.model, settings.dtype, device)
    counts, num_layers = skip_counts(model, settings.skip_ratios, settings.model), len(decoder_layers(model))
    del model
    variants = [Variant(STOCK), *(Variant(sampler, k) for sampler in samplers for k in (0, *counts.values()))]
    results = {"bench": "train", "settings": asdict(settings), **environment_info(device), "num_layers": num_layers}
    results["peak_memory_gib"] = peak_memories(settings, variants) if peak_memory else None
    with tempfile.TemporaryDirectory() as folder:
        bench = TrainerBench(settings, [STOCK, *samplers], Path(folder))
        measures = {variant.name: partial(bench.step, variant) for variant in variants}
        orders, samples = run_interleaved(measures, settings.rounds)
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
