"""What corrects for samples that come from the behavior policy mu instead of the target policy pi.

With r_t = pi(a_t) / mu(a_t) the paper replaces the importance ratio by h(r_t): r_t itself (`base`),
1 (`practical`) or lambda min(1, r_t) (`retrace`). Each is a pure function of log-probabilities
(B, T) that returns the two quantities in which they differ inside TRL's clipped surrogate

    weight * min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A),    rho = pi / exp(old)

namely `old` (B, T), the log-probs that the ratio is taken against, and the detached `weight` (B, T).
"""

from typing import NamedTuple

import torch


class Correction(NamedTuple):
    """The reference of the ratio rho and the weight outside of it, both (B, T) and without gradient."""

    old_per_token_logps: torch.Tensor
    weight: torch.Tensor


def base(per_token_logps: torch.Tensor, sampling_per_token_logps: torch.Tensor) -> Correction:
    """h(r) = r: the GRPO ratio, with the behavior policy as the old policy, clipped as usual."""
    return Correction(sampling_per_token_logps, torch.ones_like(sampling_per_token_logps))


def practical(per_token_logps: torch.Tensor, sampling_per_token_logps: torch.Tensor) -> Correction:
    """h(r) = 1: the samples are taken for on-policy ones."""
    return Correction(per_token_logps.detach(), torch.ones_like(sampling_per_token_logps))


def retrace(
    per_token_logps: torch.Tensor, sampling_per_token_logps: torch.Tensor, retrace_lambda: float
) -> Correction:
    """h(r) = lambda min(1, r), after Munos et al. (2016).

    The trace coefficient is a weight: a gradient through min(1, r) would vanish for r > 1, and inside
    the clip it would vanish for small r and negative advantages.
    """
    ratio = torch.exp(per_token_logps.detach() - sampling_per_token_logps)  # (B, T)
    return Correction(per_token_logps.detach(), retrace_lambda * ratio.clamp(max=1.0))


def correct(
    mitigation: str,
    per_token_logps: torch.Tensor,
    sampling_per_token_logps: torch.Tensor,
    retrace_lambda: float,
) -> Correction:
    """Apply the mitigation of that name to log-probs (B, T) of the target and of the behavior policy."""
    if mitigation == "base":
        return base(per_token_logps, sampling_per_token_logps)
    if mitigation == "practical":
        return practical(per_token_logps, sampling_per_token_logps)
    return retrace(per_token_logps, sampling_per_token_logps, retrace_lambda)


def off_policy_metrics(log_ratio: torch.Tensor, applied: torch.Tensor) -> dict[str, float]:
    """Return how far the behavior policy is from the target policy, on the tokens of one step.

    Args:
        log_ratio: log r_t = log pi(a_t) - log mu(a_t), (tokens,).
        applied: h(r_t), the ratio after mitigation, (tokens,).

    Returns:
        TRL's and verl's names. `kl` is the k1 and `k3_kl` the k3 estimate of KL(mu || pi) in nats
        per token; `ess` the effective share of the samples, (sum r)^2 / (n sum r^2); and
        `acceptance_rate` the mean of min(1, r), which is 1 - TV(mu, pi) and the acceptance rate
        of speculative sampling.
    """
    log_ratio, applied = log_ratio.double(), applied.double()
    ratio = log_ratio.exp()
    metrics = {}
    for name, values in (("raw_importance_sampling_ratio", ratio), ("importance_sampling_ratio", applied)):
        metrics[f"sampling/{name}/min"] = values.min().item()
        metrics[f"sampling/{name}/mean"] = values.mean().item()
        metrics[f"sampling/{name}/max"] = values.max().item()
    modified = (applied / ratio - 1).abs() > 1e-3
    metrics["sampling/frac_modified_importance_sampling_ratio"] = modified.double().mean().item()
    metrics["sampling/kl"] = -log_ratio.mean().item()
    metrics["sampling/k3_kl"] = (ratio - 1 - log_ratio).mean().item()
    metrics["sampling/ess"] = (ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())).item()
    metrics["sampling/acceptance_rate"] = ratio.clamp(max=1.0).mean().item()
    return metrics
