"""The behavior policy: the target model with a random subset of its layers skipped.

Definitions 1-3 of the paper. A mask is a pure function of (seed, step), so every rank and every
resumed run draws the same one, and no global random state is touched.
"""

import random
from collections.abc import Sequence


def bounds(num_layers: int, k: int, layer_parameters: int, lm_head_parameters: int) -> tuple[float, float]:
    """Return how much faster a token can become at most by skipping k of N layers, as in `Skipping`."""
    left = (num_layers - k) * layer_parameters + lm_head_parameters
    return num_layers / (num_layers - k), (num_layers * layer_parameters + lm_head_parameters) / left


def num_skipped(num_layers: int, skip_ratio: float) -> int:
    """Return k = round(x N): a share of all layers and not of the valid ones (Table 1: 28 -> 1, 3, 4)."""
    return round(skip_ratio * num_layers)


def valid_layers(num_layers: int, border: int, layer_types: Sequence[str] | None = None) -> list[int]:
    """Return the indices of the layers that may be skipped (Definition 2).

    Those are the layers i with b <= i < N-b, without the first layer of every attention type:
    transformers reads the cache length for that type's attention mask from it, so skipping it
    silently corrupts left-padded batches.

    Args:
        num_layers: N.
        border: b.
        layer_types: the attention type of each layer (`config.layer_types`), if they are told apart.
    """
    first_of_type = {layer_types.index(kind) for kind in layer_types} if layer_types else {0}
    return [index for index in range(border, num_layers - border) if index not in first_of_type]


def draw_skipped_layers(valid: Sequence[int], k: int, seed: int, step: int) -> list[int]:
    """Return the layers to skip at `step`: a uniformly drawn k-subset of `valid`, sorted (Definition 3).

    Raises:
        ValueError: if k exceeds the number of valid layers.
    """
    if k > len(valid):
        raise ValueError(f"{k} layers cannot be skipped where only {len(valid)} may be; lower skip_ratio or border")
    return sorted(random.Random(f"nested-reft/{seed}/{step}").sample(list(valid), k))
