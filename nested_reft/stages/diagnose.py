"""The command `diagnose`: how far the nested model is from the full model on given problems, without any training.

For each skip ratio, completions are sampled from the nested model under several draws of skipped layers, and are
scored by the full model, as in training, and by the nested model. For each layer, the completions of the full model
are scored again with that layer alone skipped. The layers with the smallest effects make up one more set of each size.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nested_reft.config.sections import BenchmarkSource
from nested_reft.config.stage_settings import DiagnosisSettings, NestedSampling
from nested_reft.data.formats import benchmark_row
from nested_reft.data.prompts import format_prompt
from nested_reft.data.sources import Row, parsed_rows
from nested_reft.errors import UserError
from nested_reft.grading.rewards import correctness, first_answer_correctness
from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import (
    decoder_layers,
    parameter_counts,
    skippable_layers,
)
from nested_reft.model.loading import load_model
from nested_reft.nesting import bounds, draw_skipped_layers, num_skipped
from nested_reft.off_policy_metrics import off_policy_metrics
from nested_reft.report import style
from nested_reft.report.figures.diagnosis import LOWEST, UNIFORM, diagnosis
from nested_reft.rollout.divergence import (
    CompletionSampler,
    Rollouts,
    groups_of_rows,
    layer_kls,
    percentile,
    score_set,
)
from nested_reft.rollout.speculative import best_draft

SHOWN_METRICS = ["kl", "k3_kl", "acceptance_rate", "ess"]


class Problems(NamedTuple):
    """Tokenized prompts and expected answers; a problem occurs once for each of its completions."""

    prompt_ids: list[list[int]]
    answers: list[list[str]]  # the accepted answers of each


class Draw(NamedTuple):
    """Completions sampled with a set of layers skipped, and what they show."""

    skipped_layers: list[int]
    rollouts: Rollouts
    log_ratios: torch.Tensor  # log pi(a_t) - log mu(a_t), (tokens,)
    kl: torch.Tensor  # KL(mu || pi) of each token's distribution, exact over the vocabulary, (tokens,)
    overlap: torch.Tensor  # 1 - TV(mu, pi) of the same, (tokens,)
    reward: float


class Diagnosis(NamedTuple):
    """The tables of a diagnosis: a row per skip ratio, per layer that may be skipped, and per set of layers."""

    by_ratio: pd.DataFrame
    by_layer: pd.DataFrame
    by_set: pd.DataFrame


def diagnose_set(sampler: CompletionSampler, skipped_layers: list[int], problems: Problems, step: int) -> Draw:
    """Sample a completion for each entry of the problems with a set of layers skipped, and score them."""
    settings = sampler.settings
    reward = first_answer_correctness if settings.fixed_length else correctness
    rollouts = sampler.sample(problems.prompt_ids, skipped_layers, step)
    texts = sampler.tokenizer.batch_decode(rollouts.completion_ids, skip_special_tokens=True)
    return Draw(
        skipped_layers,
        rollouts,
        *score_set(sampler.model, skipped_layers, rollouts, settings),
        reward=sum(reward(texts, problems.answers)) / len(texts),
    )


def metrics_of(draws: Sequence[Draw]) -> dict[str, float]:
    """Return the metrics over the tokens of all these draws, without their spread between draws."""
    pooled, kl, overlap = (torch.cat(parts) for parts in zip(*(draw[2:5] for draw in draws), strict=True))
    metrics = off_policy_metrics(pooled, pooled.exp(), pooled.exp())
    lengths = [len(completion) for draw in draws for completion in draw.rollouts.completion_ids]
    return {name: metrics[f"sampling/{name}"] for name in SHOWN_METRICS} | {
        "exact_kl": kl.mean().item(),
        "exact_kl_p95": percentile(kl, 95),
        "overlap": overlap.mean().item(),
        "overlap_p5": percentile(overlap, 5),
        "reward": sum(draw.reward for draw in draws) / len(draws),
        "mean_length": sum(lengths) / len(lengths),
    }


def row_of_ratio(draws: Sequence[Draw]) -> dict[str, float]:
    """Return the metrics over all draws, with the lowest and the highest value of a draw."""
    kls, rewards = [-draw.log_ratios.mean().item() for draw in draws], [draw.reward for draw in draws]
    spread = {"kl_lowest": min(kls), "kl_highest": max(kls)}
    return metrics_of(draws) | spread | {"reward_lowest": min(rewards), "reward_highest": max(rewards)}


def drafts_of(model: PreTrainedModel, draws: Sequence[Draw]) -> dict[str, float]:
    """Return the best length of drafts by the model without these layers, and the speed-up of speculative sampling.

    A token of the nested model is taken to cost what the bound with the output projection says.
    """
    log_ratios = [
        values.double().numpy()
        for draw in draws
        for values in draw.log_ratios.split([len(completion) for completion in draw.rollouts.completion_ids])
    ]
    _, bound = bounds(len(decoder_layers(model)), len(draws[0].skipped_layers), *parameter_counts(model))
    draft = best_draft(log_ratios, 1 / bound)
    return {"draft_length": draft.length, "speculative_speed_up": draft.speed_up}


def load_with_draws(
    model_path: Path, settings: NestedSampling, num_draws: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[float, list[list[int]]]]:
    """Return the model, its tokenizer, and skip ratio -> the skipped layers of each draw, beginning with ratio 0.

    Raises:
        UserError: if the model cannot be nested, or if a ratio skips more layers than may be skipped.
    """
    model, tokenizer = load_model(model_path, settings.dtype)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    # Only the EOS tokens are kept: other settings of the model's own would change the sampling distribution.
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    num_layers, ratios = model.config.get_text_config().num_hidden_layers, [0.0, *settings.skip_ratios]
    try:
        check_nestable(model)
        valid_layers = skippable_layers(model, settings.border)
        draws = {
            ratio: [
                draw_skipped_layers(valid_layers, num_skipped(num_layers, ratio), settings.seed, step)
                for step in range(num_draws)
            ]
            for ratio in ratios
        }
    except ValueError as error:
        raise UserError(f"{model_path} cannot be nested: {error}") from None
    return model, tokenizer, draws


def problems_in(data: Path, number: int | None) -> list[Row]:
    """Return the first problems of a file in any format that a benchmark may have; None stands for all.

    Raises:
        UserError: the file is not JSON, or one of these rows has no problem or answer.
    """
    return parsed_rows(BenchmarkSource(path=str(data), size=number), benchmark_row)


def progress_bar(total: int, unit: str, units: str, done: int = 0) -> tqdm:
    """Return a bar with the time left; where it is not a terminal that shows it, it is written every ten seconds.

    Args:
        total: the number of units.
        unit: the name of a unit.
        units: the name of several units.
        done: the number of units that an earlier process has finished.
    """
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit=unit, desc=units, mininterval=seconds, maxinterval=seconds)


def diagnose(model_path: Path, data: Path, settings: DiagnosisSettings) -> Diagnosis:
    """Return the tables of a diagnosis; those of ratios and of sets begin with ratio 0.

    Raises:
        UserError: if the data hold no problems, if the model cannot be nested, or if a ratio skips more layers than
            may be skipped.
    """
    rows = [row for row in problems_in(data, settings.num_prompts) for _ in range(settings.num_generations)]
    model, tokenizer, layers_of_draws = load_with_draws(model_path, settings, settings.num_draws)
    valid_layers = skippable_layers(model, settings.border)
    prompts = [format_prompt(row["problem"], settings.template) for row in rows]
    problems = Problems(tokenizer(prompts)["input_ids"], [row["answer"] for row in rows])
    sampler = CompletionSampler(model, tokenizer, settings)
    torch.manual_seed(settings.seed)  # sampler `generate` draws from the global random state
    # 1. Sample under random draws of layers.
    draws: dict[float, list[Draw]] = {ratio: [] for ratio in layers_of_draws}
    with progress_bar(len(draws) * settings.num_draws, "draw", "draws") as progress:
        for ratio, sets in layers_of_draws.items():
            for step, skipped_layers in enumerate(sets):
                draws[ratio].append(diagnose_set(sampler, skipped_layers, problems, step))
                progress.update()
    # 2. Skip each layer alone.
    rollouts = draws[0.0][0].rollouts
    groups = groups_of_rows(model, rollouts, settings)
    with progress_bar(len(groups) * len(valid_layers), "layer", "layers") as progress:
        by_layer = layer_kls(model, valid_layers, rollouts, settings, progress.update)
    layer_table = pd.DataFrame(by_layer.items(), columns=["layer", "kl"])
    # 3. Sample without the layers that matter least alone.
    ranked, lowest = rank_layers(layer_table), dict[float, Draw]()
    skipping = {ratio: len(of_ratio[0].skipped_layers) for ratio, of_ratio in draws.items() if ratio}
    with progress_bar(len(skipping), "lowest set", "lowest sets") as progress:
        for ratio, size in skipping.items():
            lowest[ratio] = diagnose_set(sampler, sorted(ranked[:size]), problems, settings.num_draws)
            progress.update()

    def set_row(ratio: float, choice: str, draw: Draw) -> dict[str, Any]:
        predicted = sum(by_layer[layer] for layer in draw.skipped_layers)
        layers = {"layers": " ".join(map(str, draw.skipped_layers)), "sum_of_layers": predicted}
        return (
            {"skip_ratio": ratio, "num_skipped": len(draw.skipped_layers), "choice": choice}
            | layers
            | metrics_of([draw])
        )

    return Diagnosis(
        pd.DataFrame(
            [
                {"skip_ratio": ratio, "num_skipped": len(of_ratio[0].skipped_layers)}
                | row_of_ratio(of_ratio)
                | drafts_of(model, of_ratio)
                for ratio, of_ratio in draws.items()
            ]
        ),
        layer_table,
        pd.DataFrame(
            [
                *(set_row(ratio, UNIFORM, draw) for ratio, of_ratio in draws.items() for draw in of_ratio),
                *(set_row(ratio, LOWEST, draw) for ratio, draw in lowest.items()),
            ]
        ),
    )


def rank_layers(by_layer: pd.DataFrame) -> list[int]:
    """Return the layers in the order of their KL with that layer alone skipped, the smallest first."""
    return list(by_layer.sort_values("kl")["layer"])


def write_diagnosis(found: Diagnosis, out: Path) -> None:
    """Write the tables as CSV, and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("skip_ratios", "layers", "sets"), found, strict=True):
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    style.save(diagnosis(*found), out / "diagnosis")
