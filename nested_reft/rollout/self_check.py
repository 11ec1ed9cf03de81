"""The check whether the roll-out engine supports a model, which compares log-probs with those of full forwards.

Rounding moves log-probs by 1e-6 nats in float32. In bfloat16 it moves those of a pretrained model by .03 nats on
average and by .7 at single tokens, and a position that is wrong by one moves them by only three times as much. The
engine is therefore judged by the rounding of the same model: its mean error is compared with that of plain forwards in
the type of the weights, both measured from plain forwards in float32.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nested_reft.model.layers import nested, skippable_layers
from nested_reft.model.precision import in_float32
from nested_reft.model.scoring import completion_logits, log_probs
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.token_sampling import SamplingParams

# The tokens that the engine samples after each prompt, and the number of completions that are compared.
NEW_TOKENS, COMPARED_ROWS = 16, 16
# The largest mean error, as a multiple of the mean error of plain forwards and, where rounding is smaller, in nats.
# Of right engines, the multiple is .7 to 1.2, and of one that places the tokens wrongly by one position, 2.4 or more.
LARGEST_MULTIPLE, LARGEST_IN_FLOAT32 = 1.7, 1e-3
# The rows of a forward of the check, which bound the memory of its logits.
ROWS_PER_FORWARD = 4


@torch.no_grad()
def unsupported_reason(
    engine: RolloutEngine,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingParams,
    batch_size: int | None = None,
    skipped: Sequence[int] = (),
) -> str | None:
    """Return why the engine does not support its model, or None if it does.

    The engine samples tokens after prompts of a batch, in buffers that an earlier roll-out has filled. The prompts
    are cut to different lengths, so that a row that attended to columns of another row's length would be seen.
    The engine keeps the buffers and the compiled functions of this check for the roll-out.

    Args:
        engine: the engine, which holds the model.
        prompt_ids: the prompts of the roll-out.
        sampling: the sampling distribution of the roll-out.
        batch_size: the batch size of the roll-out; None for all prompts.
        skipped: the layers that the roll-out skips. If it skips none, one layer is skipped in the check, because
            later roll-outs may skip some.
    """
    name = type(engine.model).__name__
    skipped = skipped or skippable_layers(engine.model, border=1)[:1]
    if unknown := engine.attention_types - {"full_attention", "sliding_attention"}:
        return f"{name} has layers of {', '.join(sorted(unknown))}"
    longest = sampling._replace(max_new_tokens=max(sampling.max_new_tokens, NEW_TOKENS))
    short = SamplingParams(max_new_tokens=NEW_TOKENS, fixed_length=True)
    samples: list[tuple[Sequence[int], list[int], list[float]]] = []  # prompts, completions and their log-probs
    try:
        # All rows decode, so that functions are compiled for them, but reading a prompt for each would take most time.
        rows = engine.ensure_buffers(prompt_ids, longest, batch_size).batch_size
        prompt_ids = [prompt_ids[row % COMPARED_ROWS] for row in range(rows)]
        engine.sample([prompt[::-1] for prompt in prompt_ids], short, seed=0)
        prompts = cut_to_lengths(prompt_ids)
        while len(samples) < COMPARED_ROWS:
            completions, logps = engine.sample(prompts, short, seed=1 + len(samples), skipped=skipped)
            samples += list(zip(prompts, completions, logps, strict=True))[:COMPARED_ROWS]
    except torch.OutOfMemoryError:  # depends on the device, not on the model
        raise
    except Exception as error:  # a model may differ in any way from the models that run
        message = (str(error).strip() or "-").splitlines()[0]
        return f"{name} does not run in the engine ({type(error).__name__}: {message})"
    if not has_weights_of(engine.model, engine.source):
        return f"{name} has other weights in the engine than in the model"
    return wrong_logps_reason(engine.model, skipped, *zip(*samples, strict=True))


def wrong_logps_reason(
    model: PreTrainedModel,
    skipped: Sequence[int],
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    logps: Sequence[Sequence[float]],
) -> str | None:
    """Return in which way the log-probs of completions differ from those of full forwards, or None if they do not.

    Args:
        model: the model that the engine samples from, in the type of the engine's weights.
        skipped: the layers that were skipped.
        prompt_ids: B prompts.
        completions: their completions, all of one length.
        logps: the log-probs of the completions' tokens by the engine, in nats.
    """
    with nested(model, skipped):
        plain = completion_logps(model, prompt_ids, completions)
        with in_float32(model):
            exact = completion_logps(model, prompt_ids, completions)
    sampled = torch.tensor(logps).flatten()
    difference, rounding = ((tested - exact).abs().mean().item() for tested in (sampled, plain))
    if difference <= max(LARGEST_MULTIPLE * rounding, LARGEST_IN_FLOAT32):  # false for NaN
        return None
    return (
        f"{type(model).__name__} gets other log-probabilities in the engine than in a full forward: they differ by "
        f"{difference:.2g} nats on average, and by {rounding:.2g} from rounding alone"
    )


def cut_to_lengths(prompt_ids: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the prompts cut to a quarter, a half, three quarters and all of their length, in turn."""
    return [prompt[: -(-len(prompt) * (1 + row % 4) // 4)] for row, prompt in enumerate(prompt_ids)]


def has_weights_of(model: PreTrainedModel, source: PreTrainedModel) -> bool:
    """Whether all weights of a model are those of another, rounded to its type."""
    return model is source or all(
        torch.equal(weight, original.to(weight.dtype))
        for weight, original in zip(model.parameters(), source.parameters(), strict=True)
    )


@torch.no_grad()
def completion_logps(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the log-probs of completions from forwards over whole sequences, without a KV cache.

    Args:
        model: the (nested) model.
        prompt_ids: B prompts.
        completions: their completions.

    Returns:
        log-probs in nats of all tokens of all completions, one after the other, float32 on the CPU.
    """
    logps = []
    for start in range(0, len(prompt_ids), ROWS_PER_FORWARD):
        rows = slice(start, start + ROWS_PER_FORWARD)
        scored = completion_logits(model, prompt_ids[rows], completions[rows])
        for tokens, logits in zip(completions[rows], scored, strict=True):
            index = torch.tensor(tokens, device=logits.device).unsqueeze(1)  # (T, 1)
            logps.append(log_probs(logits).gather(1, index).squeeze(1).cpu())
    return torch.cat(logps)


def logprob_errors(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    logps: Sequence[Sequence[float]],
) -> torch.Tensor:
    """Return the absolute differences of log-probs from those of a forward over each whole sequence.

    Args:
        model: the (nested) model.
        prompt_ids: B prompts.
        completions: their completions.
        logps: the log-probs of the completions' tokens, in nats.

    Returns:
        One difference per token of all completions, in nats.
    """
    sampled = torch.cat([torch.tensor(row) for row in logps])
    return (completion_logps(model, prompt_ids, completions) - sampled).abs()
