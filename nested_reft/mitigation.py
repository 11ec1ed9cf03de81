"""Weights that correct for tokens sampled from the behavior policy mu instead of the target policy pi.

With the importance ratio r_t = pi(a_t) / mu(a_t), the policy gradient on samples of mu is

    sum_t h(r_t) A grad log pi(a_t)

and each mitigation is a choice of h. `base`, `practical` and `retrace` are the paper's; `is` and `tis` are
reference methods. Here pi is the policy at the time of sampling. Where a batch is reused after an optimizer
step, the loss has a second ratio, rho = pi_now / pi, which it clips; h multiplies the gradient outside of that
clip. Only `base` has a single ratio, pi_now / mu = rho r, and clips it: mu is passed to TRL as the old policy.

The functions use methods of tensors only, so that the config can read the names below without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

# Clamp at exp(20): an infinite weight times a zero gradient would be NaN.
LARGEST_LOG_RATIO = 20.0

# The centers of the bins in which the weights of tokens are counted, 2^-4 to 2^4 in steps of 2^(1/4). A bin reaches
# from one center halfway to the next on a logarithmic scale; the first and the last hold all weights beyond them.
BINS_PER_OCTAVE, OCTAVES = 4, 4
WEIGHT_BINS = [
    2 ** (step / BINS_PER_OCTAVE) for step in range(-BINS_PER_OCTAVE * OCTAVES, BINS_PER_OCTAVE * OCTAVES + 1)
]


def importance_ratio(per_token_logps: Tensor, sampling_per_token_logps: Tensor, mask: Tensor, level: str) -> Tensor:
    """Return the ratio r (B, T), detached from the graph.

    Args:
        per_token_logps: log pi(a_t), (B, T).
        sampling_per_token_logps: log mu(a_t), (B, T).
        mask: 1 for a token and 0 for padding, (B, T).
        level: `token` for r_t, or `sequence` for the product of r_t over the sequence, repeated for each of its
            tokens. Only the product makes the gradient of a whole sequence unbiased (Theorem 1).
    """
    log_ratio = (per_token_logps.detach() - sampling_per_token_logps) * mask
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


class Parameters(Protocol):
    """The parameters that a mitigation may read; the config section `nesting` holds them."""

    retrace_lambda: float
    truncation_cap: float


def practical(ratio: Tensor, parameters: Parameters) -> Tensor:
    """h(r) = 1: the samples of mu are treated as samples of pi."""
    return ratio.new_ones(ratio.shape)


def retrace(ratio: Tensor, parameters: Parameters) -> Tensor:
    """h(r) = lambda min(1, r): the trace coefficient of Munos et al. (2016)."""
    return parameters.retrace_lambda * ratio.clamp(max=1.0)


def importance_sampling(ratio: Tensor, parameters: Parameters) -> Tensor:
    """h(r) = r: the plain importance weight."""
    return ratio


def truncated_importance_sampling(ratio: Tensor, parameters: Parameters) -> Tensor:
    """h(r) = min(C, r): the importance weight up to a cap."""
    return ratio.clamp(max=parameters.truncation_cap)


# The names of the config key `grid.mitigation`. To add a mitigation, add its function here.
MITIGATIONS: dict[str, Callable[[Tensor, Parameters], Tensor]] = {
    "base": importance_sampling,  # inside GRPO's clip: the trainer puts mu in the place of the old policy
    "practical": practical,
    "retrace": retrace,
    "is": importance_sampling,  # outside of the clip
    "tis": truncated_importance_sampling,
}


def check_mitigation(mitigation: str) -> None:
    """Raise a ValueError that names the choices, unless there is a mitigation of that name."""
    if mitigation not in MITIGATIONS:
        raise ValueError(f"mitigation {mitigation!r} is not known; choose one of {', '.join(MITIGATIONS)}")


def token_weights(mitigation: str, ratio: Tensor, parameters: Parameters) -> Tensor:
    """Return the weights h(r) (B, T) of the mitigation of that name; raise a ValueError if there is none."""
    check_mitigation(mitigation)
    return MITIGATIONS[mitigation](ratio, parameters)


def scale_gradient(per_token_logps: Tensor, weight: Tensor) -> Tensor:
    """Return log pi (B, T), bit-identical, with its gradient multiplied by `weight` (B, T).

    The gradient of any loss of the result, per token as in GRPO or per sequence as in RLOO, is weighted token by
    token, outside of the loss's own ratio and clip. If h(r) replaced the ratio inside of the loss, a token would have
    no gradient where the clip is active, nor, with `retrace`, where r > 1.
    """
    constant = per_token_logps.detach()
    return constant + weight * (per_token_logps - constant)


def weight_counts(weights: Tensor) -> list[int]:
    """Return how many of the token weights (tokens,) are in each of the bins around `WEIGHT_BINS`."""
    limit = BINS_PER_OCTAVE * OCTAVES
    steps = (weights.double().log2() * BINS_PER_OCTAVE).round().clamp(-limit, limit)
    counts: list[int] = (steps.long() + limit).bincount(minlength=len(WEIGHT_BINS)).tolist()
    return counts


def off_policy_metrics(log_ratio: Tensor, ratio: Tensor, weights: Tensor) -> dict[str, float]:
    """Return how far the behavior policy is from the target policy, on the tokens of one step.

    Args:
        log_ratio: log r_t = log pi(a_t) - log mu(a_t) of each token, not clamped, (tokens,).
        ratio: the ratio that the mitigation was applied to, of the token or of its sequence, (tokens,).
        weights: h(r), the ratio after mitigation and before any clip of the loss, (tokens,).

    Returns:
        Metrics under TRL's and verl's names. `kl` is the k1 estimate and `k3_kl` the k3 estimate of KL(mu || pi) in
        nats per token; `ess` is the effective share of the samples, (sum r)^2 / (n sum r^2), and the one of
        `importance_sampling_ratio` has h(r) in the place of r; `acceptance_rate` is the mean of min(1, r), which is
        1 - TV(mu, pi) and the acceptance rate of speculative sampling.
    """
    log_ratio, ratio, weights = (values.double().cpu() for values in (log_ratio, ratio, weights))
    raw_ratio = log_ratio.exp()
    metrics = {}
    for name, values in (("raw_importance_sampling_ratio", raw_ratio), ("importance_sampling_ratio", weights)):
        metrics[f"sampling/{name}/min"] = values.min().item()
        metrics[f"sampling/{name}/mean"] = mean(values)
        metrics[f"sampling/{name}/max"] = values.max().item()
    modified = (weights / ratio - 1).abs() > 1e-3
    metrics["sampling/frac_modified_importance_sampling_ratio"] = mean(modified.double())
    metrics["sampling/kl"] = -mean(log_ratio)
    metrics["sampling/k3_kl"] = mean(raw_ratio - 1 - log_ratio)
    metrics["sampling/ess"] = effective_share(raw_ratio)
    metrics["sampling/importance_sampling_ratio/ess"] = effective_share(weights)
    metrics["sampling/acceptance_rate"] = mean(raw_ratio.clamp(max=1.0))
    return metrics


def total(values: Tensor) -> float:
    """Return the sum of values on the CPU. Unlike torch's, it does not depend on the number of threads."""
    return float(values.numpy().sum())


def mean(values: Tensor) -> float:
    """Return the mean of values (n,) on the CPU."""
    return total(values) / len(values)


def effective_share(weights: Tensor) -> float:
    """Return (sum w)^2 / (n sum w^2) of weights (n,) on the CPU: their effective sample size, as a share of n."""
    first, second = total(weights), total(weights**2)
    return first * first / (len(weights) * second) if second else 0.0
