"""Whether the roll-out engine samples from a model correctly: its log-probs against a full forward."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nested_reft.model.layers import nested, skippable_layers
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.sampling import Sampling


@torch.no_grad()
def logprob_errors(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    logps: Sequence[Sequence[float]],
) -> torch.Tensor:
    """Return how far the log-probs of all tokens are from those of a forward over each whole sequence, in nats."""
    errors = []
    for prompt, completion, sampled in zip(prompt_ids, completions, logps, strict=True):
        tokens = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        scored = logits.log_softmax(dim=-1).gather(1, tokens[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        errors.append((scored.cpu() - torch.tensor(sampled)).abs())
    return torch.cat(errors)


@torch.no_grad()
def unsupported_reason(
    engine: RolloutEngine, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, num_rows: int | None = None
) -> str | None:
    """Return why the engine cannot be used for such a roll-out, or None: it draws a few tokens, which are scored.

    A model is covered if the engine's log-probs, with a layer skipped, are those of a forward over the whole sequence.
    """
    name = type(engine.model).__name__
    if unknown := engine.attention_types - {"full_attention", "sliding_attention"}:
        return f"{name} has layers of {', '.join(sorted(unknown))}"
    try:
        num_rows = engine.provide(prompt_ids, sampling, num_rows).num_rows  # what is tried is what will run
        prompt_ids, skipped = prompt_ids[:num_rows], skippable_layers(engine.model, border=1)[:1]
        few = Sampling(max_new_tokens=min(8, sampling.max_new_tokens), fixed_length=True)
        completions, logps = engine.sample(prompt_ids, few, seed=0, skipped=skipped)
    except torch.OutOfMemoryError:  # no property of the model
        raise
    except Exception as error:  # whatever a family does differently ends here
        return f"{name} does not run over it ({type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]})"
    distinct = {tuple(prompt): index for index, prompt in enumerate(prompt_ids)}
    some = list(distinct.values())[:4]
    with nested(engine.model, skipped):
        apart = logprob_errors(
            engine.model,
            [prompt_ids[index] for index in some],
            [completions[index] for index in some],
            [logps[index] for index in some],
        )
    # Rounding is 1e-6 in float32 and about .01 in bfloat16; another position or mask is more than one.
    is_rounding = apart.mean() < 0.05 and apart.max() < 0.5  # and no nan
    return None if is_rounding else f"{name} gives other log-probabilities over it"
