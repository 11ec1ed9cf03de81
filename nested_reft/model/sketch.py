"""A random projection of gradients to a few thousand numbers, which keeps their inner products on average."""

from collections.abc import Callable, Sequence

import torch

# Maps the gradient of each parameter to a sketch (dimension,).
Sketch = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def count_sketch(num_parameters: int, dimension: int, seed: int, device: torch.device | None = None) -> Sketch:
    """Return the CountSketch of Charikar et al. (2002), with a random bucket and sign for each entry.

    The sketch is linear, and the inner product of two sketches has the mean <x, y> over the seeds and at most the
    variance (|x|^2 |y|^2 + <x, y>^2) / dimension. A squared norm of 2^14 buckets is off by 1.1 % on average. A mean
    over pairs of n batches that are noise of rank K is off by a share sqrt(K / dimension) of its sampling error.

    Args:
        num_parameters: the number of entries of all gradients together. 4 bytes are kept for each.
        dimension: the number of buckets.
        seed: the seed of the buckets and signs, which are the same on every device.
        device: the device of the gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    # The upper half of the places stands for the buckets with a minus sign.
    places = torch.randint(2 * dimension, (num_parameters,), dtype=torch.int32, generator=generator).to(device)

    def sketch(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        buckets = torch.zeros(2 * dimension, device=device)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, place in zip(gradients, places.split(sizes), strict=True):
            buckets.index_add_(0, place, gradient.flatten().float())
        return buckets[:dimension] - buckets[dimension:]

    return sketch
