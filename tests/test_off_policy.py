"""The metrics of a step from its micro-batches. tests/stages/test_replay.py compares them with those of trainings."""

import math

import pytest
import torch

from nested_reft.config.sections import Nesting, Training
from nested_reft.off_policy import clip_metrics, metrics_of_step


def micro_batch(old_ratios, mask, advantages, drift=0.0):
    """Return a micro-batch with pi / mu as given, and pi_now / pi = exp(drift)."""
    behavior = torch.full((len(mask), len(mask[0])), math.log(0.05))
    scored = behavior + torch.tensor(old_ratios).log()
    return {
        "old_per_token_logps": scored,
        "sampling_per_token_logps": behavior,
        "completion_mask": torch.tensor(mask),
        "advantages": torch.tensor(advantages),
    } | ({"per_token_logps": scored + drift} if drift else {})


FIRST = micro_batch([[0.5, 1.0, 4.0], [1.0, 1.0, 9.0]], [[1, 1, 1], [1, 1, 0]], [1.0, -1.0])
SECOND = micro_batch([[2.0]], [[1]], [-1.0])  # of another rank, with another length


def test_metrics_are_over_all_tokens_of_all_micro_batches():
    metrics, counts = metrics_of_step([FIRST, SECOND], "tis", Nesting(truncation_cap=1.5), is_nested=True)
    assert metrics["sampling/raw_importance_sampling_ratio/mean"] == pytest.approx((0.5 + 1 + 4 + 1 + 1 + 2) / 6)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx((0.5 + 1 + 1.5 + 1 + 1 + 1.5) / 6)
    assert sum(counts) == 6


def test_the_ratio_of_a_sequence_is_that_of_its_completion():
    sequence = Nesting(ratio_level="sequence", truncation_cap=100.0)
    metrics, _ = metrics_of_step([FIRST, SECOND], "tis", sequence, is_nested=True)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx((3 * 2 + 2 * 1 + 2) / 6)


def test_dropped_tokens_and_sequences_are_counted():
    """IcePop drops the ratio 4, and with it the only token of the second batch; padding is not a token."""
    padded = micro_batch([[4.0, 1.0]], [[1, 0]], [1.0])
    metrics, _ = metrics_of_step([FIRST, padded], "icepop", Nesting(icepop_min=0.4, icepop_max=1.5), is_nested=True)
    assert metrics["sampling/frac_dropped_tokens"] == pytest.approx(2 / 6)
    assert metrics["sampling/frac_dropped_sequences"] == pytest.approx(1 / 3)
    # min(1, r) is 0.5, 1, 1, 1, 1, 1: a twentieth of the way along the six values is a quarter between the first two
    assert metrics["sampling/acceptance_rate/p05"] == pytest.approx(0.5 + 0.25 * 0.5)


def test_without_a_skipped_layer_or_a_token_nothing_is_weighted():
    metrics, _ = metrics_of_step([FIRST], "is", Nesting(), is_nested=False)
    assert metrics["sampling/importance_sampling_ratio/max"] == 1.0
    masked = micro_batch([[2.0]], [[0]], [1.0])
    assert metrics_of_step([masked], "is", Nesting(), is_nested=True) == ({}, [0] * 33)
    assert clip_metrics([masked], "base", Training(), is_nested=True).keys() == {
        *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
    }


@pytest.mark.parametrize(
    ("settings", "mitigation", "expected"),
    [
        ({}, "base", {"high_mean": 1 / 6, "high_max": 1 / 3, "low_mean": 0.0, "region_mean": 1 / 6}),
        ({}, "retrace", {"high_mean": 0.0, "high_max": 0.0, "low_mean": 0.0, "region_mean": 0.0}),
        # The ratios of the sequences: geometric means 2^(1/3), 1 and 2, or products 2, 1 and 2.
        (
            {"importance_sampling_level": "sequence"},
            "base",
            {"high_mean": 1 / 3, "high_max": 1.0, "region_mean": 1 / 3},
        ),
        ({"epsilon_high": 3.5}, "base", {"high_mean": 0.0, "region_mean": 0.0}),
        ({"algorithm": "rloo"}, "base", {"high_mean": 1 / 3, "high_max": 1.0, "low_min": 0.0, "region_mean": 1 / 3}),
    ],
)
def test_the_share_that_the_loss_clips(settings, mitigation, expected):
    """Clipped are ratios above 1.2, or 1 + epsilon_high, with A > 0, and ratios below 0.8 with A < 0."""
    metrics = clip_metrics([FIRST, SECOND], mitigation, Training(**settings), is_nested=True)
    assert {name: metrics[f"clip_ratio/{name}"] for name in expected} == pytest.approx(expected)


def test_losses_without_a_clip_have_no_share():
    for settings in ({"loss_type": "sapo"}, {"loss_type": "cispo", "epsilon_high": 5.0}):
        assert clip_metrics([FIRST, SECOND], "base", Training(**settings), is_nested=True) == {}


def test_a_later_pass_over_a_batch_is_clipped_around_pi_and_not_around_the_current_policy():
    drifted = micro_batch([[0.5, 1.0, 4.0]], [[1, 1, 1]], [1.0], drift=math.log(1.5))
    shares = {
        mitigation: clip_metrics([drifted], mitigation, Training(), is_nested=True)["clip_ratio/high_mean"]
        for mitigation in ("base", "practical")
    }
    assert shares == {"base": pytest.approx(2 / 3), "practical": 1.0}
