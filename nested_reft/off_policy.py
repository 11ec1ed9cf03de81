"""The off-policy metrics of an optimizer step, computed from its log-probabilities, in training as in replay.

A step is a list of micro-batches of all ranks, those of rank 0 first. A micro-batch is a dict of tensors on the CPU
under the names of TRL:

    old_per_token_logps       log pi of the sampled tokens, at the time of sampling, (B, T)
    sampling_per_token_logps  log mu of the sampled tokens, (B, T)
    per_token_logps           log pi_now, at the time of the step; missing where it is log pi, (B, T)
    completion_mask           1 for a token and 0 for padding, (B, T)
    advantages                the advantage of each completion, (B,)
    is_whole                  whether the whole model has sampled the completion, (B,); missing where none is
"""

from collections.abc import Mapping, Sequence

import torch

from nested_reft.config.sections import Nesting, Training
from nested_reft.mitigation import SampledTokens, mixture_logps, token_weights
from nested_reft.off_policy_metrics import mean, off_policy_metrics, weight_counts

MicroBatch = Mapping[str, torch.Tensor]


def ratio_and_weights(
    batch: MicroBatch, mitigation: str, parameters: Nesting, is_nested: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ratio r and the token weights h of a micro-batch, both (B, T) and without gradient.

    Args:
        batch: the micro-batch, which may be on any device.
        mitigation: the name of the mitigation.
        parameters: its parameters, the level of the ratio, and the share of the whole model.
        is_nested: whether layers were skipped while sampling. Otherwise mu is pi up to rounding, and no token is
            weighted.
    """
    tokens = SampledTokens(
        batch["old_per_token_logps"],
        batch["sampling_per_token_logps"],
        batch["completion_mask"],
        batch["advantages"].unsqueeze(1),
        parameters.whole_share if is_nested else 0.0,
    )
    ratio = tokens.ratio(parameters.ratio_level)
    return ratio, token_weights(mitigation, tokens, parameters) if is_nested else torch.ones_like(ratio)


def metrics_of_step(
    batches: Sequence[MicroBatch], mitigation: str, parameters: Nesting, is_nested: bool
) -> tuple[dict[str, float], list[int]]:
    """Return the off-policy metrics of a step, and how many of its tokens have a weight in each bin.

    How far mu is from pi is measured on the completions that the nested model has sampled, and the weights on all.
    Without a token of the nested model, for example because all are masked, there are no metrics. In
    `frac_dropped_sequences` all weights are 0.

    Args:
        batches: the micro-batches of the step.
        mitigation: the name of the mitigation.
        parameters: its parameters, the level of the ratio, and the share of the whole model.
        is_nested: whether layers were skipped while sampling.
    """
    columns, dropped = [], []
    for batch in batches:
        ratio, weights = ratio_and_weights(batch, mitigation, parameters, is_nested)
        log_ratio = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]  # (B, T)
        mask = batch["completion_mask"].bool()
        of_mu = mask & ~batch["is_whole"].unsqueeze(1) if "is_whole" in batch else mask
        columns.append((log_ratio[of_mu], ratio[mask], weights[mask]))
        dropped.append(((weights == 0) | ~mask).all(dim=1)[mask.any(dim=1)])  # (sequences with a token,)
    log_ratio, ratio, weights = (torch.cat(tensors) for tensors in zip(*columns, strict=True))  # (tokens,)
    metrics = off_policy_metrics(log_ratio, ratio, weights) if len(log_ratio) else {}
    if metrics:
        metrics["sampling/frac_dropped_sequences"] = mean(torch.cat(dropped).double())
    return metrics, weight_counts(weights)


def log_clipped_ratio(
    batch: MicroBatch, mitigation: str, training: Training, is_nested: bool, whole_share: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log of the ratio that the loss clips, and the weight of each of its entries in a mean.

    GRPO clips the ratio of a token (B, T) or the geometric mean over a sequence (B, 1), and RLOO the product (B, 1).

    Args:
        batch: the micro-batch.
        mitigation: the name of the mitigation; `base` puts mu, or the mixture, in the place of the old policy.
        training: the algorithm and the level of the ratio.
        is_nested: whether layers were skipped while sampling.
        whole_share: the share of the completions that the whole model has sampled.
    """
    mask, pi = batch["completion_mask"], batch["old_per_token_logps"]
    now = batch.get("per_token_logps", pi)
    mu = batch["sampling_per_token_logps"]
    if training.algorithm == "rloo":
        now, pi, mu = ((logps * mask).sum(dim=1, keepdim=True) for logps in (now, pi, mu))
    old = mixture_logps(pi, mu, whole_share) if mitigation == "base" and is_nested else pi
    log_ratio = now - old
    if training.algorithm == "grpo" and training.importance_sampling_level == "token":
        return log_ratio, mask
    if training.algorithm == "grpo":
        log_ratio = (log_ratio * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
    return log_ratio, torch.ones_like(log_ratio)


def is_clipped(
    log_ratio: torch.Tensor, advantages: torch.Tensor, training: Training
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the loss clips its ratio from below and from above, so that the gradient of the token is 0.

    Args:
        log_ratio: the log of the ratio that the loss clips, (B, T) or (B, 1).
        advantages: the advantages, (B, 1).
        training: the clip range.
    """
    epsilon_high = training.epsilon if training.epsilon_high is None else training.epsilon_high
    ratio = log_ratio.exp()
    return (ratio < 1 - training.epsilon) & (advantages < 0), (ratio > 1 + epsilon_high) & (advantages > 0)


def weights_in_loss(
    batch: MicroBatch, mitigation: str, parameters: Nesting, training: Training, is_nested: bool
) -> torch.Tensor:
    """Return the weight (B, T) with which the gradient of each token enters the loss in the first update on a batch.

    This is h(r). `base` has its ratio inside of the clip, which removes the gradient of a token also in the first
    update. For other mitigations the ratio inside of the clip is 1 then.

    Args:
        batch: the micro-batch.
        mitigation: the name of the mitigation.
        parameters: its parameters, and the level of the ratio.
        training: the settings of the loss.
        is_nested: whether layers were skipped while sampling.
    """
    if mitigation != "base" or not is_nested:
        return ratio_and_weights(batch, mitigation, parameters, is_nested)[1]
    log_ratio, _ = log_clipped_ratio(batch, mitigation, training, is_nested, parameters.whole_share)
    low, high = is_clipped(log_ratio, batch["advantages"].unsqueeze(1), training)
    return log_ratio.exp().masked_fill(low | high, 0.0)


def clip_metrics(
    batches: Sequence[MicroBatch], mitigation: str, training: Training, is_nested: bool, whole_share: float = 0.0
) -> dict[str, float]:
    """Return TRL's metrics of the clip for the micro-batches that the ranks compute at the same time.

    TRL computes these metrics in its loss, which needs a model; here the same numbers follow from log-probabilities.
    `sapo` and `cispo` have no clip, and so no such metrics.

    Args:
        batches: a micro-batch of each rank.
        mitigation: the name of the mitigation.
        training: the algorithm, the level of the ratio and the clip range.
        is_nested: whether layers were skipped while sampling.
        whole_share: the share of the completions that the whole model has sampled.
    """
    if training.algorithm == "grpo" and training.loss_type in ("sapo", "cispo"):
        return {}
    sums, shares = torch.zeros(3), []  # clipped below, clipped above, all
    for batch in batches:
        log_ratio, weights = log_clipped_ratio(batch, mitigation, training, is_nested, whole_share)
        low, high = is_clipped(log_ratio, batch["advantages"].unsqueeze(1), training)
        by_sequence = torch.stack(
            [(part * weights).sum(dim=1) for part in (low, high, torch.ones_like(low))]
        )  # (3, B)
        sums += by_sequence.sum(dim=1)
        shares.append(by_sequence[:2] / by_sequence[2])
    low_shares, high_shares = torch.cat(shares, dim=1)
    low_mean, high_mean, region_mean = (part / sums[2].clamp(min=1) for part in (sums[0], sums[1], sums[0] + sums[1]))
    metrics = {
        "low_mean": low_mean,
        "low_min": low_shares.nan_to_num(torch.inf).min(),  # a completion without a token has no share
        "high_mean": high_mean,
        "high_max": high_shares.nan_to_num(-torch.inf).max(),
        "region_mean": region_mean,
    }
    return {f"clip_ratio/{name}": value.item() for name, value in metrics.items() if value.isfinite()}
