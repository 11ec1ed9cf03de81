"""The command `gradients`: bias and variance of the policy gradient of nested roll-outs, without any training.

An arm is a skip ratio, a mitigation and a level of the importance ratio. In each batch, problems and skipped layers
are drawn as in training. One roll-out of each skip ratio serves all arms of that ratio: the whole model scores it
once, and each arm is one backward pass. The reference is a larger roll-out of the whole model on the same problems.
Its first part, the twin, is sampled with the random numbers of the nested roll-outs, so that many of its tokens are
theirs, and the difference of an arm and the twin has the bias of the arm and less of its noise. The arm of skip ratio
0 has random numbers of its own, and its bias must be zero up to its noise.

A batch is written to a file of its own, which holds a sketch of each gradient. A second start reads these files.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from nested_reft.config.parse import option_name
from nested_reft.config.sections import Nesting, Training
from nested_reft.config.stage_settings import GradientSettings
from nested_reft.data.prompts import format_prompt
from nested_reft.data.sources import Row
from nested_reft.errors import UserError
from nested_reft.grading.rewards import correctness, first_answer_correctness
from nested_reft.mitigation import WITHOUT_LEVEL
from nested_reft.model.scoring import logits_with_graph
from nested_reft.model.shared_prompts import check_shared_prompts, pack
from nested_reft.model.sketch import Sketch, count_sketch
from nested_reft.off_policy import weights_in_loss
from nested_reft.records.files import checksum, read_json, write_json
from nested_reft.report import style
from nested_reft.report.figures.gradients import gradients as gradients_figure
from nested_reft.report.gradients import norm_of_reference, rank_correlations, row_of_arm
from nested_reft.rollout.divergence import CompletionSampler, Rollouts, groups_of_rows, vocabulary_logps
from nested_reft.stages.diagnose import load_with_draws, problems_in, progress_bar

# What is kept of a batch: sketches of the reference, of its twin and of each arm, and facts of each arm.
Batch = dict[str, npt.NDArray[Any]]
FACTS = ("rollout_seconds", "update_seconds", "tokens", "reward")


class Arm(NamedTuple):
    """A behavior policy and what is done about it."""

    skip_ratio: float
    mitigation: str
    ratio_level: str  # empty for a mitigation that does not read it


ON_POLICY = Arm(0.0, "none", "")


def arms_of(settings: GradientSettings) -> list[Arm]:
    """Return the arms, those of one skip ratio together, beginning with the whole model."""
    ratios = dict.fromkeys(ratio for ratio in settings.skip_ratios if ratio > 0)
    return [ON_POLICY] + [
        Arm(ratio, mitigation, level)
        for ratio in ratios
        for mitigation in settings.mitigations
        for level in ([""] if mitigation in WITHOUT_LEVEL else settings.ratio_levels)
    ]


# ---- the gradient of a roll-out -----------------------------------------------------------------------


def advantages_of(rewards: torch.Tensor, num_generations: int, scale_rewards: str) -> torch.Tensor:
    """Return the advantages (B,) of rewards (B,), as GRPO of TRL computes them.

    Args:
        rewards: the rewards of a batch; those of a problem are neighbors.
        num_generations: G, the completions of a problem, whose mean reward is subtracted.
        scale_rewards: the rewards whose standard deviation divides: `group`, `batch` or `none`.
    """
    groups = rewards.view(-1, num_generations)
    centered = groups - groups.mean(dim=1, keepdim=True)
    if scale_rewards == "none":
        return centered.flatten()
    deviation = groups.std(dim=1, keepdim=True) if scale_rewards == "group" else rewards.std()
    return (centered / (deviation + 1e-4)).flatten()


def now(model: PreTrainedModel) -> float:
    """Return the time in seconds at which the device of the model has finished its work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def policy_gradients(
    model: PreTrainedModel,
    rollouts: Rollouts,
    advantages: torch.Tensor,
    arms: Sequence[Arm],
    settings: GradientSettings,
    sketch: Sketch,
) -> tuple[torch.Tensor, list[float]]:
    """Return the gradient of the objective of each arm on one roll-out, (arms, D), and the seconds of each.

    The gradient is that of the first update on a batch: the sum over tokens of h A grad log pi, over the number of
    completions and their largest length. At fixed length this is the mean over tokens, as in most losses of GRPO. The
    seconds are those of the forward, which the arms share, and of the arm's own backward.

    Args:
        model: the whole model.
        rollouts: B completions.
        advantages: their advantages, (B,).
        arms: arms of one skip ratio.
        settings: the settings of the command.
        sketch: maps the gradient of each parameter to (D,). It is linear.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    totals: list[Any] = [0.0] * len(arms)
    forward, backwards = 0.0, [0.0] * len(arms)
    scale = len(rollouts.prompt_ids) * settings.max_completion_length
    for rows in groups_of_rows(model, rollouts, settings):
        prompt_ids, completion_ids = rollouts.prompt_ids[rows], rollouts.completion_ids[rows]
        started = now(model)
        score = token_logps_of_shared_prompts if settings.share_prompts else token_logps
        per_token_logps = score(model, prompt_ids, completion_ids, settings)  # (B, T)
        forward += now(model) - started
        batch = {
            "old_per_token_logps": per_token_logps.detach(),
            "sampling_per_token_logps": padded(rollouts.sampling_per_token_logps[rows]).to(model.device),
            "completion_mask": padded([[1.0] * len(tokens) for tokens in completion_ids]).to(model.device),
            "advantages": advantages[rows].to(model.device),
        }
        for place, arm in enumerate(arms):
            started = now(model)
            nesting = Nesting(ratio_level=arm.ratio_level) if arm.ratio_level else Nesting()
            is_nested = arm.mitigation != ON_POLICY.mitigation
            weights = weights_in_loss(batch, arm.mitigation, nesting, Training(), is_nested)
            of_tokens = weights * batch["advantages"].unsqueeze(1) * batch["completion_mask"] / scale  # (B, T)
            gradients = torch.autograd.grad(per_token_logps, parameters, of_tokens, retain_graph=True)
            backwards[place] += now(model) - started
            totals[place] = totals[place] + sketch(gradients)
    return torch.stack(totals), [forward + backward for backward in backwards]


def padded(rows: Sequence[Sequence[float]], side: str = "right") -> torch.Tensor:
    """Return rows of numbers as a tensor (B, T), with 0 after the end of a row, or before its start."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)


def token_logps(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    settings: GradientSettings,
) -> torch.Tensor:
    """Return log pi of the tokens of completions, with a graph, (B, T); the values of padding have no meaning."""
    logits = pad_sequence(logits_with_graph(model, prompt_ids, completion_ids), batch_first=True)  # (B, T, V)
    tokens = padded(completion_ids).long().to(model.device).unsqueeze(2)
    return vocabulary_logps(logits, settings).gather(2, tokens).squeeze(2)


def token_logps_of_shared_prompts(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    settings: GradientSettings,
) -> torch.Tensor:
    """Return the same from a forward that reads each prompt once, as `training.share_prompts` does."""
    ids, mask = (
        torch.cat([padded(prompts, side="left"), padded(completions)], dim=1).long().to(model.device)
        for prompts, completions in (
            (prompt_ids, completion_ids),
            ([[1] * len(row) for row in prompt_ids], [[1] * len(row) for row in completion_ids]),
        )
    )
    batch = pack(ids, mask, max(map(len, completion_ids)))
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
    ).logits[:, :-1]  # (P, L - 1, V)
    labels = batch.labels[:, 1:].clamp(min=0).unsqueeze(2)
    return batch.completions(vocabulary_logps(logits, settings).gather(2, labels).squeeze(2))


# ---- a batch ------------------------------------------------------------------------------------------


class Bench(NamedTuple):
    """What all batches share."""

    problems: list[Row]
    sampler: CompletionSampler
    draws: dict[float, list[list[int]]]  # skip ratio -> the skipped layers of each batch
    arms: list[Arm]
    sketch: Sketch
    settings: GradientSettings


# Which random numbers a roll-out has: those of the reference, or its own.
SHARED, OWN = 0, 1


def measure_rollout(
    bench: Bench, batch: int, arms: Sequence[Arm], numbers: int, parts: int = 1
) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    """Return the sketches of a roll-out of a batch, (parts, arms, D), and the FACTS of each arm, (FACTS, arms).

    Args:
        bench: the bench.
        batch: the number of the batch, which decides the problems and the skipped layers.
        arms: arms of one skip ratio.
        numbers: SHARED or OWN.
        parts: how often each problem has G completions.
    """
    settings, sampler = bench.settings, bench.sampler
    rng = random.Random(f"gradients/{settings.seed}/{batch}")
    problems = rng.sample(bench.problems, settings.prompts_per_batch)
    rows = [row for row in problems for _ in range(settings.num_generations)] * parts
    prompt_ids = sampler.tokenizer([format_prompt(row["problem"], settings.template) for row in rows])["input_ids"]
    # Sampler `generate` draws from the global random state.
    torch.manual_seed(random.Random(f"gradients/{settings.seed}/{batch}/{numbers}").getrandbits(63))
    started = time.perf_counter()
    rollouts = sampler.sample(prompt_ids, bench.draws[arms[0].skip_ratio][batch], 2 * batch + numbers)
    rollout_seconds = time.perf_counter() - started
    texts = sampler.tokenizer.batch_decode(rollouts.completion_ids, skip_special_tokens=True)
    reward = first_answer_correctness if settings.fixed_length else correctness
    rewards = torch.tensor(reward(texts, [row["answer"] for row in rows]))
    size, sketches, update_seconds = len(rows) // parts, [], np.zeros(len(arms))
    for start in range(0, len(rows), size):
        of_part = slice(start, start + size)
        part = Rollouts(
            rollouts.prompt_ids[of_part],
            rollouts.completion_ids[of_part],
            rollouts.sampling_per_token_logps[of_part],
        )
        advantages = advantages_of(rewards[of_part], settings.num_generations, settings.scale_rewards)
        found, seconds = policy_gradients(sampler.model, part, advantages, arms, settings, bench.sketch)
        sketches.append(found.cpu())
        update_seconds += seconds
    shared = rollout_seconds, sum(map(len, rollouts.completion_ids)), rewards.mean().item()
    seconds_of_rollout, tokens, reward_of_rollout = (np.full(len(arms), value) for value in shared)
    return torch.stack(sketches), np.stack([seconds_of_rollout, update_seconds, tokens, reward_of_rollout])


def measure_batch(bench: Bench, batch: int) -> Batch:
    """Return `sketches` of the reference, of its twin and of the arms, (2 + arms, D), and `facts` of the arms."""
    reference, _ = measure_rollout(bench, batch, [ON_POLICY], SHARED, bench.settings.reference_groups)
    rollouts = [measure_rollout(bench, batch, [ON_POLICY], OWN)] + [
        measure_rollout(bench, batch, [arm for arm in bench.arms if arm.skip_ratio == ratio], SHARED)
        for ratio in dict.fromkeys(arm.skip_ratio for arm in bench.arms if arm != ON_POLICY)
    ]
    of_arms, facts = zip(*rollouts, strict=True)
    sketches = torch.cat([reference.mean(dim=0), reference[0], *(found[0] for found in of_arms)])
    return {"sketches": sketches.numpy(), "facts": np.concatenate(facts, axis=1)}


# ---- all batches --------------------------------------------------------------------------------------


def settings_of_batches(model_path: Path, data: Path, settings: GradientSettings) -> dict[str, Any]:
    """Return what decides the numbers of a batch, under the names for a message; the number of batches does not."""
    options = {option_name(name): value for name, value in settings.model_dump(exclude={"num_batches"}).items()}
    return options | {"the checksum of MODEL": checksum(model_path), "the checksum of --data": checksum(data)}


def refuse_other_settings(path: Path, wanted: dict[str, Any]) -> None:
    """Compare settings with those in a file, if there is one.

    Raises:
        UserError: a setting differs.
    """
    found = read_json(path) if path.exists() else wanted
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{path.parent} holds batches for which {name} was {found.get(name)!s:.60}, and now it is "
                f"{value!s:.60}; name another folder with --out, or delete this one"
            )


def read_batch(path: Path) -> Batch:
    """Return a batch that an earlier start wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and start the command again") from None


def load_bench(model_path: Path, data: Path, settings: GradientSettings) -> Bench:
    """Return the model and the problems, ready to measure batches.

    Raises:
        UserError: if the data hold too few problems, if the model cannot be nested, or if a ratio skips more layers
            than may be skipped.
    """
    problems = problems_in(data, None)
    if len(problems) < settings.prompts_per_batch:
        raise UserError(
            f"--prompts-per-batch is {settings.prompts_per_batch}, but {data} has {len(problems)} problems; lower it, "
            "or give more problems"
        )
    model, tokenizer, draws = load_with_draws(model_path, settings, settings.num_batches)
    if settings.share_prompts:
        check_shared_prompts(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sketch = count_sketch(num_parameters, settings.sketch_dimension, settings.seed, model.device)
    sampler = CompletionSampler(model, tokenizer, settings)
    return Bench(problems, sampler, draws, arms_of(settings), sketch, settings)


def measure(model_path: Path, data: Path, settings: GradientSettings, out: Path) -> list[Batch]:
    """Return all batches, of which those are measured that the folder lacks.

    Raises:
        UserError: as `load_bench`, or if the folder holds batches of other settings or a damaged one.
    """
    wanted = settings_of_batches(model_path, data, settings)
    refuse_other_settings(out / "settings.json", wanted)
    paths = [out / "batches" / f"{batch:05d}.safetensors" for batch in range(settings.num_batches)]
    missing = [batch for batch, path in enumerate(paths) if not path.exists()]
    if missing:
        bench = load_bench(model_path, data, settings)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        write_json(out / "settings.json", wanted)
        with progress_bar(len(paths), "batch", "batches", len(paths) - len(missing)) as progress:
            for batch in missing:
                part = paths[batch].with_suffix(".part")
                save_file(measure_batch(bench, batch), part)
                part.replace(paths[batch])
                progress.update()
    return [read_batch(path) for path in paths]


def table_of(arms: Sequence[Arm], batches: Sequence[Batch]) -> tuple[pd.DataFrame, dict[str, float] | None]:
    """Return a row per arm, and how stable the order of the nested arms is, if there are at least three of them.

    Raises:
        UserError: the batches are too few to distinguish the on-policy gradient from zero.
    """
    sketches = np.stack([batch["sketches"] for batch in batches]).astype(np.float64)  # (n, 2 + arms, D)
    reference, twin, *of_arms = sketches.transpose(1, 0, 2)
    if not norm_of_reference(reference).low > 0:
        raise UserError(
            f"the on-policy gradient cannot be distinguished from zero after --num-batches {len(batches)}, so that no "
            "bias can be measured relative to it; give a larger number, and the command goes on with the batches that "
            "are missing"
        )
    # The median over batches, because another process may have delayed a single one; lengths and rewards: the mean.
    facts = np.stack([batch["facts"] for batch in batches])  # (n, FACTS, arms)
    columns = dict(zip(FACTS, [*np.median(facts[:, :2], axis=0), *facts[:, 2:].mean(axis=0)], strict=True))
    rows = []
    for place, (arm, gradients) in enumerate(zip(arms, of_arms, strict=True)):
        own = {name: float(values[place]) for name, values in columns.items()}
        seconds = own["rollout_seconds"] + own["update_seconds"]
        statistics = row_of_arm(gradients, twin, reference, seconds, own["tokens"])
        rows.append(arm._asdict() | statistics | {"seconds": seconds} | own)
    correlations = rank_correlations(of_arms[1:], twin, reference) if len(of_arms) > 3 else None
    return pd.DataFrame(rows), correlations


def write_gradients(
    table: pd.DataFrame, correlations: dict[str, float] | None, settings: GradientSettings, out: Path
) -> None:
    """Write the table as CSV, the same with the settings as JSON, and the figure."""
    table.to_csv(out / "gradients.csv", index=False, float_format="%.6g")
    arms = [
        {name: None if pd.isna(value) else value for name, value in row.items()} for row in table.to_dict("records")
    ]
    write_json(
        out / "gradients.json",
        {"settings": settings.model_dump(), "arms": arms, "rank_correlation_of_halves": correlations},
    )
    style.save(gradients_figure(table), out / "gradients")
