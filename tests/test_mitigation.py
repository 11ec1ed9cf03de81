"""The mitigations as functions; test_trainer.py has their gradients, test_theorem_1.py what they estimate."""

import math
import subprocess
import sys

import pytest
import torch

from nested_reft.config.sections import Nesting
from nested_reft.mitigation import (
    MITIGATIONS,
    RATIO_LEVELS,
    WITHOUT_LEVEL,
    SampledTokens,
    importance_ratio,
    mixture_logps,
    ratio_to_mixture,
    scale_gradient,
    token_weights,
)
from nested_reft.off_policy_metrics import WEIGHT_BINS, off_policy_metrics, weight_counts

RATIOS = [0.1, 0.5, 1.0, 2.0, 10.0]  # the product is 1, and so is the geometric mean


def sampled(ratios, advantage=1.0, mask=None):
    """Return the tokens of one sequence, which ends with padding where the mask is 0."""
    behavior = torch.full((1, len(ratios)), -2.0)
    mask = torch.ones(1, len(ratios)) if mask is None else torch.tensor([mask])
    return SampledTokens(behavior + torch.tensor([ratios]).log(), behavior, mask, torch.tensor([[advantage]]))


@pytest.mark.parametrize(
    ("mitigation", "expected"),
    [
        ("base", [0.1, 0.5, 1.0, 2.0, 10.0]),
        ("practical", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("retrace", [0.05, 0.25, 0.5, 0.5, 0.5]),
        ("is", [0.1, 0.5, 1.0, 2.0, 10.0]),
        ("tis", [0.1, 0.5, 1.0, 2.0, 3.0]),
        ("icepop", [0.0, 0.5, 1.0, 2.0, 0.0]),
        ("sequence_mask", [0.1, 0.5, 1.0, 2.0, 10.0]),
        ("geometric_mask", [0.1, 0.5, 1.0, 2.0, 10.0]),
        ("trace", [0.05, 0.0125, 0.00625, 0.003125, 0.0015625]),
        ("topr", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("opsm", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_each_reads_as_its_formula(mitigation, expected):
    parameters = Nesting(retrace_lambda=0.5, truncation_cap=3.0, icepop_min=0.4, icepop_max=4.0)
    assert token_weights(mitigation, sampled(RATIOS), parameters)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mitigation", "ratios", "advantage", "expected"),
    [
        # the product is 8 and the geometric mean 2, or 1/8 and 1/2
        ("sequence_mask", [4.0, 2.0, 1.0], 1.0, {7.9: 0.0, 8.1: 1.0}),
        ("sequence_mask", [0.25, 0.5, 1.0], 1.0, {7.9: 1.0}),  # one-sided
        ("geometric_mask", [4.0, 2.0, 1.0], 1.0, {1.9: 0.0, 2.1: 1.0}),
        ("geometric_mask", [0.25, 0.5, 1.0], 1.0, {1.9: 0.0, 2.1: 1.0}),
        # the mean of log mu - log pi is log 2
        ("opsm", [0.25, 0.5, 1.0], -1.0, {0.69: 0.0, 0.7: 1.0}),
        ("opsm", [0.25, 0.5, 1.0], 1.0, {0.69: 1.0}),
        ("opsm", [0.25, 0.5, 1.0], 0.0, {0.69: 1.0}),
        ("opsm", [4.0, 2.0, 1.0], -1.0, {0.69: 1.0}),
    ],
)
def test_a_sequence_is_kept_up_to_its_bound_whatever_the_level(mitigation, ratios, advantage, expected):
    """Padding with any ratio changes nothing."""
    name = {"sequence_mask": "sequence_mask_cap", "geometric_mask": "geometric_mask_bound", "opsm": "opsm_threshold"}
    tokens = sampled([*ratios, 9.0], advantage, [1, 1, 1, 0])
    for bound, kept in expected.items():
        for level in RATIO_LEVELS:
            found = token_weights(mitigation, tokens, Nesting(**{name[mitigation]: bound}, ratio_level=level))
            whole = torch.ones(1, 4) if mitigation == "opsm" else tokens.ratio(level)
            assert torch.equal(found, kept * whole), (bound, level)


def test_topr_tapers_only_what_was_worse_than_expected():
    for ratios, advantage, weight in (([4.0, 0.1], 1.0, 1.0), ([4.0, 0.1], -1.0, 0.4), ([4.0, 0.5], -1.0, 1.0)):
        found = token_weights("topr", sampled(ratios, advantage), Nesting())
        assert found[0].tolist() == pytest.approx([weight] * 2)
    by_token = sampled([4.0, 0.1])._replace(advantages=torch.tensor([[1.0, -1.0]]))
    assert token_weights("topr", by_token, Nesting())[0].tolist() == pytest.approx([1.0, 0.4])


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [0.5, 4.0, 0.25, 3.0]),
        ("prefix", [0.5, 2.0, 0.5, 1.5]),
        ("prefix_min", [0.5, 0.5, 0.25, 0.25]),
        ("sequence", [1.5, 1.5, 1.5, 1.5]),
        ("geometric", [1.5**0.25] * 4),
    ],
)
def test_the_levels_of_the_ratio(level, expected):
    """As formulas, and without the padding that follows."""
    ratios = [0.5, 4.0, 0.25, 3.0]
    assert sampled(ratios).ratio(level)[0].tolist() == pytest.approx(expected)
    padded = sampled([*ratios, 7.0, 0.01], mask=[1, 1, 1, 1, 0, 0])
    assert padded.ratio(level)[0, :4].tolist() == pytest.approx(expected)
    assert sampled(ratios, mask=[0, 0, 0, 0]).ratio(level)[0].tolist() == [1.0] * 4  # a masked completion
    assert set(RATIO_LEVELS) == {"token", "prefix", "prefix_min", "sequence", "geometric"}


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="'retrase' is not known; choose one of base, practical, retrace, is, tis"):
        token_weights("retrase", sampled(RATIOS), Nesting())


def test_a_mitigation_is_added_by_one_entry(monkeypatch):
    monkeypatch.setitem(MITIGATIONS, "square_root", lambda ratio, tokens, parameters: ratio.sqrt())
    found = token_weights("square_root", sampled([4.0, 0.25]), Nesting())
    assert found[0].tolist() == pytest.approx([2.0, 0.5])
    with pytest.raises(ValueError, match=r"choose one of .*, square_root"):
        token_weights("retrase", sampled(RATIOS), Nesting())


def test_the_names_of_mitigations_are_read_without_torch():
    script = (
        "import sys; import nested_reft.mitigation, nested_reft.off_policy_metrics; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_ratios_leave_padding_out_and_stay_finite():
    logps = torch.tensor([[-1.0, -2.0, -50.0], [-1.0, -900.0, 0.0]], requires_grad=True)
    behavior = torch.tensor([[-2.0, -1.5, 0.0], [-1.0, 0.0, -900.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    token = importance_ratio(logps, behavior, mask, "token")
    assert token[0].tolist() == pytest.approx([2.7182817, 0.6065307, 1.0])
    assert not token.requires_grad and token.isfinite().all()
    sequence = importance_ratio(logps, behavior, mask, "sequence")
    assert sequence[0].tolist() == pytest.approx([2.7182817 * 0.6065307] * 3)
    # what is finite times a gradient of zero is zero, where infinity would be no number
    scale_gradient(logps, token).sum().backward()
    assert logps.grad.isfinite().all()


def test_a_weight_changes_the_gradient_and_nothing_else():
    logps = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.tensor([[0.1, 1.0, 7.3], [0.0, 1e8, 0.3]])
    weighted = scale_gradient(logps, weight)
    assert torch.equal(weighted, logps)
    weighted.sum().backward()
    assert torch.equal(logps.grad, weight)


def test_metrics_on_an_enumerated_vocabulary():
    """With every token drawn in proportion to mu, E[r] = 1, E[min(1, r)] = 1 - TV, and kl is KL(mu || pi)."""
    mu, pi = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    tokens = torch.tensor([0, 0, 1, 2])  # in proportion to mu
    log_ratio = (pi / mu).log()[tokens]
    metrics = off_policy_metrics(log_ratio, log_ratio.exp(), torch.ones(4))
    assert metrics["sampling/raw_importance_sampling_ratio/mean"] == pytest.approx(1.0)
    assert metrics["sampling/acceptance_rate"] == pytest.approx(1 - (mu - pi).abs().sum().item() / 2)
    # min(1, r) is 0.5, 0.5, 1, 1; the percentiles are between its first two values
    assert metrics["sampling/acceptance_rate/p01"] == metrics["sampling/acceptance_rate/p05"] == pytest.approx(0.5)
    assert metrics["sampling/kl"] == pytest.approx((mu * (mu / pi).log()).sum().item())
    assert metrics["sampling/k3_kl"] == pytest.approx(metrics["sampling/kl"])
    assert metrics["sampling/ess"] == pytest.approx(1 / ((pi / mu) ** 2 * mu).sum().item())
    assert metrics["sampling/frac_modified_importance_sampling_ratio"] == 0.75
    assert metrics["sampling/importance_sampling_ratio/max"] == 1.0
    assert metrics["sampling/importance_sampling_ratio/ess"] == 1.0  # equal weights


def test_metrics_do_not_depend_on_the_number_of_threads():
    log_ratio = torch.randn(200_001, generator=torch.Generator().manual_seed(0))
    threads, found = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(off_policy_metrics(log_ratio, log_ratio.exp(), log_ratio.exp().clamp(max=2.0)))
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_weights_that_are_all_zero_are_no_samples():
    metrics = off_policy_metrics(torch.zeros(3), torch.ones(3), torch.zeros(3))
    assert metrics["sampling/importance_sampling_ratio/ess"] == 0.0


def test_every_weight_is_counted_in_the_bin_around_it():
    weights = torch.tensor([1.0, 1.05, 0.95, 2.0, 1e9, 0.0])
    counts = dict(zip(WEIGHT_BINS, weight_counts(weights), strict=True))
    assert {center: count for center, count in counts.items() if count} == {1.0: 3, 2.0: 1, 16.0: 1, 1 / 16: 1}


def test_the_mitigations_without_a_level_are_those_whose_weights_do_not_depend_on_it():
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(6, 5, generator=generator)
    pi = mu + 0.05 * torch.randn(6, 5, generator=generator)  # near enough that no mask drops everything
    advantages = torch.tensor([1.0, -1.0]).repeat(3).unsqueeze(1)
    tokens = SampledTokens(pi, mu, torch.ones(6, 5), advantages)
    for mitigation in set(MITIGATIONS) - {"base"}:  # the trainer gives `base` to the loss, which has its own level
        by_token, by_sequence = (
            token_weights(mitigation, tokens, Nesting(ratio_level=level)) for level in ("token", "sequence")
        )
        assert torch.equal(by_token, by_sequence) == (mitigation in WITHOUT_LEVEL), mitigation


def test_the_ratio_to_the_mixture_reads_as_its_formula():
    log_ratio = torch.tensor([-300.0, -2.0, 0.0, 1.0, 300.0])
    assert ratio_to_mixture(log_ratio, 0.0) is log_ratio
    for share in (0.125, 0.5, 0.9):
        expected = [math.exp(value) / (share * math.exp(value) + 1 - share) for value in log_ratio.tolist()]
        assert ratio_to_mixture(log_ratio, share).exp().tolist() == pytest.approx(expected)
        pi, mu = torch.tensor([-0.1, -3.0]), torch.tensor([-2.0, -0.2])
        mixture = share * pi.exp() + (1 - share) * mu.exp()
        assert torch.allclose(mixture_logps(pi, mu, share), mixture.log())


@pytest.mark.parametrize("level", RATIO_LEVELS)
def test_with_a_share_of_the_whole_model_every_ratio_is_bounded_at_every_level(level):
    tokens = sampled([30.0, 0.2, 10.0, 50.0, 1.0], mask=[1, 1, 1, 1, 0])
    without, share = tokens.ratio(level)[0], 0.25
    found = tokens._replace(whole_share=share).ratio(level)[0]
    assert torch.allclose(found, without / (share * without + 1 - share))
    assert found.max() <= (1 + 1e-6) / share and (level == "prefix_min" or found[:4].max() > 2.4)


def test_opsm_takes_the_mean_of_the_ratio_to_the_mixture():
    """The mean of log mu - log pi is log 4; against a mixture of equal parts it is -log(0.25 / 0.625)."""
    tokens = sampled([0.25, 0.25], advantage=-1.0)
    for threshold, share, weight in ((1.3, 0.0, 0.0), (1.3, 0.5, 1.0), (0.93, 0.5, 1.0), (0.91, 0.5, 0.0)):
        found = token_weights("opsm", tokens._replace(whole_share=share), Nesting(opsm_threshold=threshold))
        assert found.tolist() == [[weight, weight]], (threshold, share)
