"""Speculative sampling with the nested model as its draft: the lossless use of skipped layers, as a reference.

The nested model mu drafts some tokens, one forward of the whole model pi gives its distributions of all of them, and
the first tokens are kept as far as a test accepts them (Leviathan et al., 2023; Chen et al., 2023). The completions
are samples of pi, so that nothing is off-policy and no mitigation is needed. What this costs is the forwards of pi.

The sampler here shows how many forwards are needed. It has no KV cache, so that its time means nothing.
`expected_tokens` predicts the same from roll-outs of mu alone, and `best_draft` the gain.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from nested_reft.model.layers import nested
from nested_reft.model.scoring import completion_logits

# The longest draft that `best_draft` considers.
LONGEST_DRAFT = 16


# ---- the prediction -----------------------------------------------------------------------------------


class Draft(NamedTuple):
    """A length of drafts, in tokens, and how many times as fast the completions are as without drafts."""

    length: int  # 0 where no draft makes them faster
    speed_up: float


def expected_tokens(log_ratios: Sequence[npt.NDArray[np.float64]], draft_length: int) -> float:
    """Return the expected number of tokens of a draft and its forward of pi, 1 + sum_j E prod_{i<=j} min(1, r_i).

    The j-th token of a draft is kept if it and all before it are accepted, each with the probability min(1, r). One
    more token is always drawn, in place of the first that is refused, or after the last. Every token of a roll-out
    of mu is taken as the start of a draft, so that the tokens before a draft are samples of mu instead of pi.

    Args:
        log_ratios: log pi(a_t) - log mu(a_t) of the tokens of each completion that mu has sampled, (T,) each.
        draft_length: the number of tokens of a draft, at most the length of one of the completions.
    """
    kept = [
        np.lib.stride_tricks.sliding_window_view(np.minimum(values, 0.0), draft_length).cumsum(axis=1)
        for values in log_ratios
        if len(values) >= draft_length
    ]
    return float(1 + np.exp(np.concatenate(kept)).sum(axis=1).mean())


def best_draft(log_ratios: Sequence[npt.NDArray[np.float64]], cost: float) -> Draft:
    """Return the length of drafts with the largest speed-up, and the speed-up.

    The forward of pi over a draft is taken to last as long as that of one token, which holds where reading the
    weights takes most of it: for few completions at a time.

    Args:
        log_ratios: as for `expected_tokens`.
        cost: the time of a token of mu, as a share of that of a token of pi.
    """
    longest = min(LONGEST_DRAFT, max(map(len, log_ratios)))
    drafts = [
        Draft(length, expected_tokens(log_ratios, length) / (length * cost + 1)) for length in range(1, longest + 1)
    ]
    return max([Draft(0, 1.0), *drafts], key=lambda draft: draft.speed_up)


# ---- the reference ------------------------------------------------------------------------------------


class Speculation(NamedTuple):
    """Completions of pi, each a little longer than asked for, and the forwards of pi that each needed."""

    completion_ids: list[list[int]]
    num_forwards: list[int]


def last_distributions(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    number: int,
    temperature: float,
) -> torch.Tensor:
    """Return the distributions of the last tokens of each completion and of the token that follows, (B, number, V)."""
    followed = [[*completion, 0] for completion in completion_ids]  # its last distribution does not read the 0
    logits = completion_logits(model, prompt_ids, followed)
    return torch.stack([of_row[-number:] for of_row in logits]).double().div(temperature).softmax(dim=-1)


@torch.no_grad()
def sample_speculatively(
    model: PreTrainedModel,
    skipped: Sequence[int],
    prompt_ids: Sequence[Sequence[int]],
    num_tokens: int,
    draft_length: int,
    seed: int,
    temperature: float = 1.0,
) -> Speculation:
    """Sample a completion of pi for each prompt, with drafts of mu. EOS tokens are tokens like others.

    Args:
        model: the whole model, pi.
        skipped: the indices of the layers that mu skips.
        prompt_ids: B prompts.
        num_tokens: the smallest length of a completion. The last draft can exceed it.
        draft_length: the number of tokens of a draft.
        seed: the seed of all samples.
        temperature: the sampling temperature of both.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    completions: list[list[int]] = [[] for _ in prompt_ids]
    num_forwards = [0] * len(completions)
    while rows := [row for row, completion in enumerate(completions) if len(completion) < num_tokens]:
        prompts, drafted = [prompt_ids[row] for row in rows], [list(completions[row]) for row in rows]
        # 1. The nested model drafts.
        of_drafts = []
        with nested(model, skipped):
            for _ in range(draft_length):
                mu = last_distributions(model, prompts, drafted, 1, temperature)[:, 0]  # (R, V)
                for draft, token in zip(drafted, torch.multinomial(mu, 1, generator=generator)[:, 0], strict=True):
                    draft.append(int(token))
                of_drafts.append(mu)
        mu = torch.stack([*of_drafts, torch.zeros_like(of_drafts[0])], dim=1)  # (R, L + 1, V), nothing after the draft
        # 2. The whole model gives its distributions of the same tokens, and of the token after the draft.
        pi = last_distributions(model, prompts, drafted, draft_length + 1, temperature)  # (R, L + 1, V)
        # 3. A token is accepted with the probability min(1, pi / mu), and all after the first refused one are dropped.
        tokens = torch.tensor([draft[-draft_length:] for draft in drafted], device=model.device).unsqueeze(2)
        ratio = (pi[:, :-1].gather(2, tokens) / mu[:, :-1].gather(2, tokens)).squeeze(2)  # (R, L)
        accepted = torch.rand(ratio.shape, dtype=ratio.dtype, device=model.device, generator=generator) < ratio
        num_accepted = accepted.long().cumprod(dim=1).sum(dim=1)  # (R,)
        # 4. The next token has the distribution that pi has beyond mu, or that of pi after a whole draft.
        beyond = (pi - mu).clamp(min=0)[torch.arange(len(rows), device=model.device), num_accepted]  # (R, V)
        following = torch.multinomial(beyond, 1, generator=generator)[:, 0]
        for row, draft, kept, token in zip(rows, drafted, num_accepted.tolist(), following.tolist(), strict=True):
            completions[row] = [*draft[: len(draft) - draft_length + kept], token]
            num_forwards[row] += 1
    return Speculation(completions, num_forwards)
