"""What corrects for samples that come from the behavior policy mu instead of the target policy pi.

With the importance ratio r_t = pi(a_t) / mu(a_t) a policy gradient on samples of mu is

    sum_t h(r_t) A grad log pi(a_t)

and the mitigations are choices of h. `base`, `practical` and `retrace` are the paper's; `is` and
`tis` are reference rows. pi is the policy at the time of sampling: later passes over the samples
have a clipped ratio rho = pi_now / pi of their own, outside of which h stands. Only `base` has a single
ratio, pi_now / mu = rho r, inside the clip: mu takes the place of TRL's old policy, h adds nothing.
"""

import torch

# exp(20) keeps every weight finite: infinity times a gradient of zero is not a number.
LARGEST_LOG_RATIO = 20.0


def importance_ratio(
    per_token_logps: torch.Tensor, sampling_per_token_logps: torch.Tensor, mask: torch.Tensor, level: str
) -> torch.Tensor:
    """Return r (B, T), without gradient.

    Args:
        per_token_logps: log pi(a_t), (B, T).
        sampling_per_token_logps: log mu(a_t), (B, T).
        mask: 1 where there is a token, 0 where there is padding, (B, T).
        level: `token` for r_t, or `sequence` for the product of r_t over the sequence, at all of its
            tokens. Only the product makes the gradient of a whole sequence unbiased (Theorem 1).
    """
    log_ratio = (per_token_logps.detach() - sampling_per_token_logps) * mask
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def base(ratio: torch.Tensor) -> torch.Tensor:
    """h(r) = r, clipped as GRPO clips its ratio (the caller puts mu in the place of the old policy)."""
    return ratio


def practical(ratio: torch.Tensor) -> torch.Tensor:
    """h(r) = 1: the samples are taken for on-policy ones."""
    return torch.ones_like(ratio)


def retrace(ratio: torch.Tensor, retrace_lambda: float) -> torch.Tensor:
    """h(r) = lambda min(1, r), the trace coefficient of Munos et al. (2016)."""
    return retrace_lambda * ratio.clamp(max=1.0)


def importance_sampling(ratio: torch.Tensor) -> torch.Tensor:
    """h(r) = r: `is`, the plain importance weight, never clipped."""
    return ratio


def tis(ratio: torch.Tensor, truncation_cap: float) -> torch.Tensor:
    """h(r) = min(C, r): truncated importance sampling."""
    return ratio.clamp(max=truncation_cap)


def token_weights(mitigation: str, ratio: torch.Tensor, retrace_lambda: float, truncation_cap: float) -> torch.Tensor:
    """Return h(r) (B, T) of the mitigation of that name."""
    match mitigation:
        case "base":
            return base(ratio)
        case "practical":
            return practical(ratio)
        case "retrace":
            return retrace(ratio, retrace_lambda)
        case "is":
            return importance_sampling(ratio)
        case "tis":
            return tis(ratio, truncation_cap)
    raise ValueError(f"mitigation {mitigation!r} is not known; choose base, practical, retrace, is or tis")


def scale_gradient(per_token_logps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return log pi (B, T), the same to the last bit, with its gradient multiplied by `weight` (B, T).

    Whatever loss is made of it, per token as in GRPO or per sequence as in RLOO, its gradient is
    weighted token by token, outside of the loss's own ratio and clip. A weight inside would lose its
    gradient where r > 1, or where the clip cuts.
    """
    constant = per_token_logps.detach()
    return constant + weight * (per_token_logps - constant)


def off_policy_metrics(log_ratio: torch.Tensor, ratio_used: torch.Tensor, applied: torch.Tensor) -> dict[str, float]:
    """Return how far the behavior policy is from the target policy, on the tokens of one step.

    Args:
        log_ratio: log r_t = log pi(a_t) - log mu(a_t), (tokens,).
        ratio_used: r as the mitigation takes it, the token's or its sequence's, (tokens,).
        applied: h(r), the ratio after mitigation, before any clip of the loss, (tokens,).

    Returns:
        TRL's and verl's names. `kl` is the k1 and `k3_kl` the k3 estimate of KL(mu || pi) in nats
        per token; `ess` the effective share of the samples, (sum r)^2 / (n sum r^2); and
        `acceptance_rate` the mean of min(1, r), which is 1 - TV(mu, pi) and the acceptance rate
        of speculative sampling.
    """
    log_ratio, ratio_used, applied = log_ratio.double(), ratio_used.double(), applied.double()
    ratio = log_ratio.exp()
    metrics = {}
    for name, values in (("raw_importance_sampling_ratio", ratio), ("importance_sampling_ratio", applied)):
        metrics[f"sampling/{name}/min"] = values.min().item()
        metrics[f"sampling/{name}/mean"] = values.mean().item()
        metrics[f"sampling/{name}/max"] = values.max().item()
    modified = (applied / ratio_used - 1).abs() > 1e-3
    metrics["sampling/frac_modified_importance_sampling_ratio"] = modified.double().mean().item()
    metrics["sampling/kl"] = -log_ratio.mean().item()
    metrics["sampling/k3_kl"] = (ratio - 1 - log_ratio).mean().item()
    metrics["sampling/ess"] = (ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())).item()
    metrics["sampling/acceptance_rate"] = ratio.clamp(max=1.0).mean().item()
    return metrics
