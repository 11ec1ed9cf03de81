"""The mitigations, against the paper's definitions and by their gradients."""

import math

import pytest
import torch

from nested_reft.mitigation import correct, off_policy_metrics

EPSILON = 0.2
RATIOS = [0.1, 0.5, 0.9, 1.1, 2.0, 10.0]

# d(loss)/d(log pi), divided by -A: 1 is what an on-policy sample gets.
GRADIENTS = {
    ("base", 1.0): [0.1, 0.5, 0.9, 1.1, 0.0, 0.0],  # PPO's clip: no push further up
    ("base", -1.0): [0.0, 0.0, 0.9, 1.1, 2.0, 10.0],  # nor further down; unbounded above
    ("practical", 1.0): [1.0] * 6,
    ("practical", -1.0): [1.0] * 6,
    ("retrace", 1.0): [0.1, 0.5, 0.9, 1.0, 1.0, 1.0],  # min(1, r)
    ("retrace", -1.0): [0.1, 0.5, 0.9, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize(("mitigation", "advantage"), GRADIENTS)
def test_gradients_in_the_clipped_surrogate(mitigation, advantage):
    behavior = torch.full((1, 6), math.log(0.05))
    logps = (behavior + torch.tensor([RATIOS]).log()).requires_grad_()
    old, weight = correct(mitigation, logps, behavior, retrace_lambda=1.0)
    rho, weighted = torch.exp(logps - old), advantage * weight
    torch.min(rho * weighted, rho.clamp(1 - EPSILON, 1 + EPSILON) * weighted).sum().backward()
    assert logps.grad[0].div(advantage).tolist() == pytest.approx(GRADIENTS[mitigation, advantage], abs=1e-5)


def test_lambda_scales_retrace():
    behavior, logps = torch.zeros(1, 3), torch.tensor([[-1.0, 0.0, 1.0]])
    assert torch.allclose(
        correct("retrace", logps, behavior, 0.5).weight, 0.5 * correct("retrace", logps, behavior, 1.0).weight
    )


def test_corrections_carry_no_gradient():
    logps = torch.zeros(1, 3, requires_grad=True)
    for mitigation in ("base", "practical", "retrace"):
        assert not any(tensor.requires_grad for tensor in correct(mitigation, logps, torch.ones(1, 3), 1.0))


def test_metrics_on_an_enumerated_vocabulary():
    """With every token drawn in proportion to mu, E[r] = 1, E[min(1, r)] = 1 - TV, and kl is KL(mu || pi)."""
    mu, pi = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    tokens = torch.tensor([0, 0, 1, 2])  # in proportion to mu
    log_ratio = (pi / mu).log()[tokens]
    metrics = off_policy_metrics(log_ratio, torch.ones(4))
    assert metrics["sampling/raw_importance_sampling_ratio/mean"] == pytest.approx(1.0)
    assert metrics["sampling/acceptance_rate"] == pytest.approx(1 - (mu - pi).abs().sum().item() / 2)
    assert metrics["sampling/kl"] == pytest.approx((mu * (mu / pi).log()).sum().item())
    assert metrics["sampling/k3_kl"] == pytest.approx(metrics["sampling/kl"])
    assert metrics["sampling/ess"] == pytest.approx(1 / ((pi / mu) ** 2 * mu).sum().item())
    assert metrics["sampling/frac_modified_importance_sampling_ratio"] == 0.75
    assert metrics["sampling/importance_sampling_ratio/max"] == 1.0
