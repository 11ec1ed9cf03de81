"""The check whether the roll-out engine supports a model, which compares log-probs with those of a full forward."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nested_reft.model.layers import nested, skippable_layers
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.token_sampling import SamplingParams


@torch.no_grad()
def unsupported_reason(
    engine: RolloutEngine,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingParams,
    batch_size: int | None = None,
    skipped: Sequence[int] = (),
) -> str | None:
    """Return why the engine does not support its model, or None if it does.

    The engine samples up to 8 tokens after each prompt of a batch. The log-probs after up to 4 distinct prompts are
    compared with a full forward, both with the same layers skipped. The engine keeps the buffers and the compiled
    functions of this check for the roll-out.

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
    try:
        prompt_ids = prompt_ids[: engine.ensure_buffers(prompt_ids, sampling, batch_size).batch_size]
        short = SamplingParams(max_new_tokens=min(8, sampling.max_new_tokens), fixed_length=True)
        completions, logps = engine.sample(prompt_ids, short, seed=0, skipped=skipped)
    except torch.OutOfMemoryError:  # depends on the device, not on the model
        raise
    except Exception as error:  # a model may differ in any way from the models that run
        message = (str(error).strip() or "-").splitlines()[0]
        return f"{name} does not run in the engine ({type(error).__name__}: {message})"
    row_of_prompt = {tuple(prompt): row for row, prompt in enumerate(prompt_ids)}
    rows = list(row_of_prompt.values())[:4]
    with nested(engine.model, skipped):
        errors = logprob_errors(
            engine.model,
            [prompt_ids[row] for row in rows],
            [completions[row] for row in rows],
            [logps[row] for row in rows],
        )
    # Rounding shifts log-probs by 1e-6 in float32 and by about .01 in bfloat16. A wrong position or attention mask
    # shifts them by more than 1 nat. NaN fails both comparisons.
    is_rounding = errors.mean() < 0.05 and errors.max() < 0.5
    return None if is_rounding else f"{name} gets other log-probabilities in the engine than in a full forward"


@torch.no_grad()
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
    errors = []
    for prompt, completion, sampled_logps in zip(prompt_ids, completions, logps, strict=True):
        tokens = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        scored = logits.log_softmax(dim=-1).gather(1, tokens[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        errors.append((scored.cpu() - torch.tensor(sampled_logps)).abs())
    return torch.cat(errors)
