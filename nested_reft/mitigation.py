"""Weights that correct for tokens sampled from the behavior policy mu instead of the target policy pi.

With the importance ratio r_t = pi(a_t) / mu(a_t), the policy gradient on samples of mu is

    sum_t h(r_t) A grad log pi(a_t)

and each mitigation is a choice of h. `base`, `practical` and `retrace` are the paper's; the others are corrections
of the field. Here pi is the policy at the time of sampling. Where a batch is reused after an optimizer step, the
loss has a second ratio, rho = pi_now / pi, which it clips; h multiplies the gradient outside of that clip. Only
`base` has a single ratio, pi_now / mu = rho r, and clips it: mu is passed to TRL as the old policy.

With the config key `nesting.whole_share`, the whole model samples a share b of the completions, and r is the ratio to
the mixture b pi + (1 - b) mu, at every level and in every mitigation.

The functions use methods of tensors only, so that the config can read the names below without importing torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

# Clamp at exp(20): an infinite weight times a zero gradient would be NaN.
LARGEST_LOG_RATIO = 20.0

# ---- the importance ratio -----------------------------------------------------------------------

# The names of the config key `nesting.ratio_level`. Each function takes log r_t (B, T), which is 0 for padding, and
# the mask (B, T), and returns the log of the ratio r of each token, (B, T) or (B, 1).
RATIO_LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # r_t, as in PPO and GRPO.
    "token": lambda log_ratio, mask: log_ratio,
    # The product of r_s over s <= t: CTPO (Zhang et al., 2026).
    "prefix": lambda log_ratio, mask: log_ratio.cumsum(dim=1),
    # The smallest r_s over s <= t: a stand-in for the prefix's product, after MinPRO (Lei et al., 2026).
    "prefix_min": lambda log_ratio, mask: log_ratio.cummin(dim=1).values,
    # The product of r_s over the whole sequence: the importance weight of Theorem 1.
    "sequence": lambda log_ratio, mask: log_ratio.sum(dim=1, keepdim=True),
    # The geometric mean of r_s over the sequence, which does not grow with its length: GSPO (Zheng et al., 2025).
    "geometric": lambda log_ratio, mask: log_ratio.sum(dim=1, keepdim=True) / num_tokens(mask),
}


def num_tokens(mask: Tensor) -> Tensor:
    """Return the number of tokens of each sequence (B, 1), and 1 for a sequence without a token."""
    return mask.sum(dim=1, keepdim=True).clamp(min=1)


def ratio_to_mixture(log_ratio: Tensor, whole_share: float) -> Tensor:
    """Return the log of pi / (b pi + (1 - b) mu) from log pi - log mu, elementwise; it is at most -log b.

    This is the weight of the balance heuristic (Veach and Guibas, 1995) for samples of which a share b is from pi and
    the rest from mu, whichever of the two a sample is from. It is bounded by 1/b at every level of the ratio. The
    gradient is unbiased at the level `sequence`, where the mixture is that of whole completions, as they are sampled,
    for an advantage that does not depend on the other completions. At the other levels the ratio has the same bound,
    and a bias as without a mixture.

    Args:
        log_ratio: log pi - log mu, of any shape.
        whole_share: b, at least 0 and below 1. With 0, the result is `log_ratio` itself.
    """
    if whole_share == 0:
        return log_ratio
    return -log_ratio.new_tensor(math.log(whole_share)).logaddexp(math.log1p(-whole_share) - log_ratio)


def mixture_logps(logps: Tensor, behavior_logps: Tensor, whole_share: float) -> Tensor:
    """Return log(b pi + (1 - b) mu) from log pi and log mu, of tokens or of sequences; with b = 0 it is log mu."""
    if whole_share == 0:
        return behavior_logps
    return logps - ratio_to_mixture(logps - behavior_logps, whole_share)


def importance_ratio(
    per_token_logps: Tensor, sampling_per_token_logps: Tensor, mask: Tensor, level: str, whole_share: float = 0.0
) -> Tensor:
    """Return the ratio r (B, T), detached from the graph.

    Args:
        per_token_logps: log pi(a_t), (B, T).
        sampling_per_token_logps: log mu(a_t), (B, T).
        mask: 1 for a token and 0 for padding, (B, T).
        level: a name of `RATIO_LEVELS`. A ratio of the whole sequence is repeated for each of its tokens. Only the
            product over the sequence makes the gradient of a reward of the whole sequence unbiased (Theorem 1).
        whole_share: b, the share of the completions that are samples of pi; the ratio is that to the mixture.
    """
    log_ratio = (per_token_logps.detach() - sampling_per_token_logps) * mask
    of_level = ratio_to_mixture(RATIO_LEVELS[level](log_ratio, mask), whole_share).expand_as(log_ratio)
    return of_level.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


class SampledTokens(NamedTuple):
    """What a mitigation may read about the sampled tokens of a micro-batch, without gradient."""

    per_token_logps: Tensor  # log pi(a_t), at the time of sampling, (B, T)
    sampling_per_token_logps: Tensor  # log mu(a_t), (B, T)
    mask: Tensor  # 1 for a token and 0 for padding, (B, T)
    advantages: Tensor  # A, (B, 1) or (B, T)
    whole_share: float = 0.0  # b, the share of the completions that the whole model has sampled

    def ratio(self, level: str) -> Tensor:
        """Return the ratio r (B, T) at a level, to the mixture if the whole model has sampled a share."""
        return importance_ratio(
            self.per_token_logps, self.sampling_per_token_logps, self.mask, level, self.whole_share
        )


# ---- the mitigations ----------------------------------------------------------------------------


class Parameters(Protocol):
    """The parameters that a mitigation may read; the config section `nesting` holds them."""

    ratio_level: str
    retrace_lambda: float
    truncation_cap: float
    icepop_min: float
    icepop_max: float
    sequence_mask_cap: float
    geometric_mask_bound: float
    opsm_threshold: float


# In each formula, r is the ratio at the level of `nesting.ratio_level`. A mitigation that is defined by the ratio of
# a token or of a sequence, whatever the level, asks the tokens for it.


def practical(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = 1: the samples of mu are treated as samples of pi."""
    return ratio.new_ones(ratio.shape)


def retrace(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = lambda min(1, r): the trace coefficient of Retrace (Munos et al., 2016), of one step as in the paper."""
    return parameters.retrace_lambda * ratio.clamp(max=1.0)


def importance_sampling(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = r: the plain importance weight."""
    return ratio


def truncated_importance_sampling(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = min(C, r): the importance weight up to a cap (Ionides, 2008).

    As `token_truncate` and `sequence_truncate` of TRL 1.16, for the ratio levels `token` and `sequence`.
    """
    return ratio.clamp(max=parameters.truncation_cap)


def icepop(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = r if alpha <= r <= beta, else 0: IcePop (Ling Team, 2025), as `token_mask` of TRL 1.16."""
    return ratio * ((ratio >= parameters.icepop_min) & (ratio <= parameters.icepop_max))


def sequence_mask(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = r if the product of r_s over the sequence is at most C, else 0 for all its tokens (Liu et al., 2025).

    With the ratio level `sequence` as `sequence_mask`, the default of TRL 1.16.
    """
    return ratio * (tokens.ratio("sequence") <= parameters.sequence_mask_cap)


def geometric_mask(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = r if 1/C <= the geometric mean of r_s over the sequence <= C, else 0 for all of its tokens.

    The rejection at the level `geometric` of verl (Liu et al., 2025): its bound does not depend on the length.
    """
    mean, bound = tokens.ratio("geometric"), parameters.geometric_mask_bound
    return ratio * ((mean >= 1 / bound) & (mean <= bound))


def trace(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r) = the product of lambda min(1, r_s) over s <= t: the trace of Retrace(lambda) (Munos et al., 2016)."""
    return (parameters.retrace_lambda * tokens.ratio("token").clamp(max=1.0)).cumprod(dim=1)


def topr(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r, A) = 1 if A >= 0, else min(1, r of the sequence): tapered off-policy REINFORCE (Le Roux et al., 2025)."""
    return tokens.ratio("sequence").clamp(max=1.0).masked_fill(tokens.advantages >= 0, 1.0)


def opsm(ratio: Tensor, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """h(r, A) = 0 if A < 0 and the mean of -log r, which is log mu - log pi, is above delta, else 1.

    Off-policy sequence masking (DeepSeek-V3.2, 2025), as `get_off_policy_mask` of TRL 1.16.
    """
    log_ratio = tokens.per_token_logps - tokens.sampling_per_token_logps
    divergence = -ratio_to_mixture(log_ratio, tokens.whole_share) * tokens.mask
    mean = divergence.sum(dim=1, keepdim=True) / num_tokens(tokens.mask)
    return ratio.new_ones(ratio.shape) * ((tokens.advantages >= 0) | (mean <= parameters.opsm_threshold))


# The names of the config key `grid.mitigation`. To add a mitigation, add its function here.
MITIGATIONS: dict[str, Callable[[Tensor, SampledTokens, Parameters], Tensor]] = {
    "base": importance_sampling,  # inside GRPO's clip: the trainer puts mu in the place of the old policy
    "practical": practical,
    "retrace": retrace,
    "is": importance_sampling,  # outside of the clip
    "tis": truncated_importance_sampling,
    "icepop": icepop,
    "sequence_mask": sequence_mask,
    "geometric_mask": geometric_mask,
    "trace": trace,
    "topr": topr,
    "opsm": opsm,
}

# The mitigations that do not read the level of `nesting.ratio_level`: the loss has a level of its own for `base`, and
# the others are defined by the ratio of a token or of a sequence.
WITHOUT_LEVEL = ("base", "practical", "trace", "topr", "opsm")


def check_mitigation(mitigation: str) -> None:
    """Raise a ValueError that names the choices, unless there is a mitigation of that name."""
    if mitigation not in MITIGATIONS:
        raise ValueError(f"mitigation {mitigation!r} is not known; choose one of {', '.join(MITIGATIONS)}")


def token_weights(mitigation: str, tokens: SampledTokens, parameters: Parameters) -> Tensor:
    """Return the weights h (B, T) of the mitigation of that name; raise a ValueError if there is none."""
    check_mitigation(mitigation)
    return MITIGATIONS[mitigation](tokens.ratio(parameters.ratio_level), tokens, parameters)


def scale_gradient(per_token_logps: Tensor, weight: Tensor) -> Tensor:
    """Return log pi (B, T), bit-identical, with its gradient multiplied by `weight` (B, T).

    The gradient of any loss of the result, per token as in GRPO or per sequence as in RLOO, is weighted token by
    token, outside of the loss's own ratio and clip. If h replaced the ratio inside of the loss, a token would have
    no gradient where the clip is active, nor, with `retrace`, where r > 1.
    """
    constant = per_token_logps.detach()
    return constant + weight * (per_token_logps - constant)
