"""Sketches keep inner products on average, and by as little noise as the docstring says."""

import pytest
import torch

from nested_reft.model.sketch import count_sketch


def test_inner_products_are_kept_on_average_and_sketches_are_linear():
    generator, dimension = torch.Generator().manual_seed(0), 64
    x, noise = torch.randn(2, 3000, generator=generator) + 0.3  # signs remove the product of the means
    y = x + noise

    def parts(vector):
        return [vector[:1000].view(10, 100), vector[1000:]]  # the gradients of two parameters

    found, expected = [], (x @ y).item()
    for seed in range(400):
        sketch = count_sketch(3000, dimension, seed)
        found.append(sketch(parts(x)) @ sketch(parts(y)))
    products = torch.stack(found)
    error = ((x @ x * (y @ y) + expected**2) / dimension).item() ** 0.5
    assert products.mean().item() == pytest.approx(expected, abs=4 * error / 20)  # 400 seeds
    assert products.std().item() == pytest.approx(error, rel=0.15)
    torch.testing.assert_close(sketch(parts(x)) + sketch(parts(noise)), sketch(parts(y)), rtol=0, atol=1e-3)
    assert torch.equal(sketch(parts(x)), count_sketch(3000, dimension, 399)(parts(x)))
