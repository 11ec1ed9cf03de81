"""How far a behavior policy is from the target policy, and how a mitigation weights the tokens, as numbers.

The functions use methods of tensors only, so that reports can read the bins below without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The centers of the bins in which the weights of tokens are counted, 2^-4 to 2^4 in steps of 2^(1/4). A bin reaches
# from one center halfway to the next on a logarithmic scale; the first and the last hold all weights beyond them.
BINS_PER_OCTAVE, OCTAVES = 4, 4
WEIGHT_BINS = [
    2 ** (step / BINS_PER_OCTAVE) for step in range(-BINS_PER_OCTAVE * OCTAVES, BINS_PER_OCTAVE * OCTAVES + 1)
]


def weight_counts(weights: Tensor) -> list[int]:
    """Return how many of the token weights (tokens,) are in each of the bins around `WEIGHT_BINS`."""
    limit = BINS_PER_OCTAVE * OCTAVES
    steps = (weights.double().log2() * BINS_PER_OCTAVE).round().clamp(-limit, limit)
    counts: list[int] = (steps.long() + limit).bincount(minlength=len(WEIGHT_BINS)).tolist()
    return counts


def off_policy_metrics(log_ratio: Tensor, ratio: Tensor, weights: Tensor) -> dict[str, float]:
    """Return how far the behavior policy is from the target policy, on the tokens of one step.

    Args:
        log_ratio: log pi(a_t) - log mu(a_t) of each token that mu has sampled, not clamped, (tokens of mu,).
        ratio: the ratio that the mitigation was applied to, of the token or of its sequence, (tokens,).
        weights: h, the ratio after mitigation and before any clip of the loss, (tokens,).

    Returns:
        Metrics under TRL's and verl's names. `kl` is the k1 estimate and `k3_kl` the k3 estimate of KL(mu || pi) in
        nats per token; `ess` is the effective share of the samples, (sum r)^2 / (n sum r^2), and the one of
        `importance_sampling_ratio` has h in the place of r; `acceptance_rate` is the mean of min(1, r), which is
        1 - TV(mu, pi) and the acceptance rate of speculative sampling, and its 1st and 5th percentile are over the
        tokens. The weight of `frac_dropped_tokens` is 0.
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
    accepted = raw_ratio.clamp(max=1.0)
    metrics["sampling/acceptance_rate"] = mean(accepted)
    for percent in (1, 5):
        metrics[f"sampling/acceptance_rate/p{percent:02}"] = accepted.quantile(percent / 100).item()
    metrics["sampling/frac_dropped_tokens"] = mean((weights == 0).double())
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
