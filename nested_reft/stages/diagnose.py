"""How far a nested model is from the whole one, on given problems: what to look at before training.

For each skip ratio, completions are sampled under several masks and scored by the whole model, as
training would. For each layer, the completions of the whole model are read again with that layer alone
skipped. Nothing is trained.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.grading.rewards import correctness, first_answer_correctness
from nested_reft.mitigation import off_policy_metrics
from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import nested, skippable_layers
from nested_reft.model.loading import load_model
from nested_reft.nesting import draw_skipped_layers, num_skipped
from nested_reft.records.files import read_rows
from nested_reft.report import figures as plots
from nested_reft.rollout.generate import sample

SHOWN = ["kl", "k3_kl", "acceptance_rate", "ess"]


class Settings(NamedTuple):
    """What is sampled."""

    skip_ratios: list[float]
    border: int
    num_prompts: int
    num_generations: int
    num_masks: int
    max_completion_length: int
    fixed_length: bool
    batch_size: int
    temperature: float
    seed: int


class Sequences(NamedTuple):
    """Prompts with completions, and what the sampler says of them."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    sampling_per_token_logps: list[list[float]]


@torch.no_grad()
def distributions(
    model: PreTrainedModel, sequences: Sequences, start: int, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probs (B, T, V) of a batch of completions as TRL scores them, and which are of tokens, (B, T)."""
    rows = slice(start, start + settings.batch_size)
    prompts, completions = sequences.prompt_ids[rows], sequences.completion_ids[rows]
    before, after = max(map(len, prompts)), max(map(len, completions))
    ids = [
        [0] * (before - len(prompt)) + prompt + completion + [0] * (after - len(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    mask = [
        [0] * (before - len(prompt)) + [1] * (len(prompt) + len(completion)) + [0] * (after - len(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    attention_mask = torch.tensor(mask, device=model.device)
    logits = model(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=attention_mask,
        logits_to_keep=after + 1,
        use_cache=False,
    ).logits[:, :-1]
    return torch.log_softmax(logits.float() / settings.temperature, dim=-1), attention_mask[:, before:].bool()


def log_ratios(model: PreTrainedModel, sequences: Sequences, settings: Settings) -> torch.Tensor:
    """Return log pi(a_t) - log mu(a_t) of all tokens, (tokens,)."""
    found = []
    for start in range(0, len(sequences.prompt_ids), settings.batch_size):
        logps, _ = distributions(model, sequences, start, settings)
        for row in range(len(logps)):
            tokens = torch.tensor(sequences.completion_ids[start + row], device=model.device)
            of_row = logps[row, : len(tokens)].gather(1, tokens.unsqueeze(1)).squeeze(1)
            found.append(of_row.cpu() - torch.tensor(sequences.sampling_per_token_logps[start + row]))
    return torch.cat(found)


def layer_kl(model: PreTrainedModel, layer: int, sequences: Sequences, settings: Settings) -> float:
    """Return KL(mu || pi) in nats per token, exact over the vocabulary, where mu skips that one layer."""
    total, tokens = 0.0, 0
    for start in range(0, len(sequences.prompt_ids), settings.batch_size):
        log_pi, mask = distributions(model, sequences, start, settings)
        with nested(model, [layer]):
            log_mu, _ = distributions(model, sequences, start, settings)
        total += (log_mu.exp() * (log_mu - log_pi)).sum(-1)[mask].sum().item()
        tokens += int(mask.sum())
    return total / tokens


def draw(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: list[list[int]], settings: Settings
) -> Sequences:
    """Sample a completion for each prompt from the model as it is now."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or [tokenizer.eos_token_id]
    generation_config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        max_new_tokens=settings.max_completion_length,
        min_new_tokens=settings.max_completion_length if settings.fixed_length else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
    )
    completion_ids: list[list[int]] = []
    logps: list[list[float]] = []
    for start in range(0, len(prompt_ids), settings.batch_size):
        with torch.no_grad():
            drawn = sample(model, prompt_ids[start : start + settings.batch_size], generation_config, ends)
        completion_ids += drawn[0]
        logps += drawn[1]
    return Sequences(prompt_ids, completion_ids, logps)


def diagnose(
    model_path: Path, dtype: str, data: Path, template: str, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per skip ratio, and a row per layer that may be skipped.

    Raises:
        UserError: if the model cannot be nested, or if a ratio skips more layers than may be.
    """
    model, tokenizer = load_model(model_path, dtype)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    # what a model's own generation settings hold beside its end tokens is not asked for here
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    config = model.config.get_text_config()
    valid = skippable_layers(model, settings.border)
    counts = {ratio: num_skipped(config.num_hidden_layers, ratio) for ratio in [0.0, *settings.skip_ratios]}
    try:
        check_nestable(model)
        masks = {
            ratio: [draw_skipped_layers(valid, k, settings.seed, step) for step in range(settings.num_masks)]
            for ratio, k in counts.items()
        }
    except ValueError as error:
        raise UserError(f"{model_path} cannot be diagnosed: {error}") from None

    problems = read_rows(data)[: settings.num_prompts]
    prompts = [format_prompt(row["problem"], template) for row in problems for _ in range(settings.num_generations)]
    answers = [row["answer"] for row in problems for _ in range(settings.num_generations)]
    prompt_ids = tokenizer(prompts)["input_ids"]
    by_ratio, by_layer = [], []
    of_target: Sequences | None = None
    torch.manual_seed(settings.seed)
    steps = len(masks) * settings.num_masks + len(valid)
    with tqdm(total=steps, unit="pass", disable=not sys.stderr.isatty()) as progress:
        for ratio, of_ratio in masks.items():
            of_masks, rewards, lengths = [], [], []
            for mask in of_ratio:
                with nested(model, mask):
                    sequences = draw(model, tokenizer, prompt_ids, settings)
                of_target = of_target or sequences  # the first ones are sampled with no layer skipped
                of_masks.append(log_ratios(model, sequences, settings))
                texts = tokenizer.batch_decode(sequences.completion_ids, skip_special_tokens=True)
                reward = first_answer_correctness if settings.fixed_length else correctness
                rewards.append(sum(reward(texts, answers)) / len(texts))
                lengths += [len(ids) for ids in sequences.completion_ids]
                progress.update()
            pooled = torch.cat(of_masks)
            metrics = off_policy_metrics(pooled, pooled.exp(), pooled.exp())
            by_ratio.append(
                {"skip_ratio": ratio, "num_skipped": counts[ratio]}
                | {name: metrics[f"sampling/{name}"] for name in SHOWN}
                | {
                    "kl_lowest_mask": min(-of_mask.mean().item() for of_mask in of_masks),
                    "kl_highest_mask": max(-of_mask.mean().item() for of_mask in of_masks),
                    "reward": sum(rewards) / len(rewards),
                    "reward_lowest_mask": min(rewards),
                    "reward_highest_mask": max(rewards),
                    "mean_length": sum(lengths) / len(lengths),
                }
            )
        assert of_target is not None
        for layer in valid:
            by_layer.append({"layer": layer, "kl": layer_kl(model, layer, of_target, settings)})
            progress.update()
    return pd.DataFrame(by_ratio), pd.DataFrame(by_layer)


def ranking(by_layer: pd.DataFrame) -> str:
    """Return the layers in the order of what skipping them alone changes."""
    return ", ".join(str(layer) for layer in by_layer.sort_values("kl")["layer"])


def write(by_ratio: pd.DataFrame, by_layer: pd.DataFrame, out: Path) -> None:
    """Write both tables as CSV, and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    by_ratio.to_csv(out / "skip_ratios.csv", index=False, float_format="%.6g")
    by_layer.to_csv(out / "layers.csv", index=False, float_format="%.6g")
    plots.save(plots.diagnosis(by_ratio, by_layer), out / "diagnosis")
