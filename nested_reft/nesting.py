"""The behavior policy: the target model with a random subset of its layers skipped.

Definitions 1-3 of the paper. A mask is a pure function of (seed, step), so every rank and every
resumed run draws the same one, and no global random state is touched.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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


def draw_mask(valid: Sequence[int], k: int, seed: int, step: int) -> list[int]:
    """Return the layers to skip at `step`: a uniformly drawn k-subset of `valid`, sorted (Definition 3).

    Raises:
        ValueError: if k exceeds the number of valid layers.
    """
    if k > len(valid):
        raise ValueError(f"{k} layers cannot be skipped where only {len(valid)} may be; lower skip_ratio or border")
    return sorted(random.Random(f"nested-reft/{seed}/{step}").sample(list(valid), k))


def decoder_layers(model: "PreTrainedModel") -> "torch.nn.ModuleList":
    """Return the stack of decoder layers, found by its structure and not by its name.

    Raises:
        ValueError: if the model has no plain stack of `num_hidden_layers` layers.
    """
    import torch

    num_layers = model.config.get_text_config().num_hidden_layers
    layer_classes = model._no_split_modules or ()
    for module in model.modules():
        is_stack = isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
        if is_stack and all(type(layer).__name__ in layer_classes for layer in module):
            return module
    raise ValueError(f"{type(model).__name__} has no plain stack of {num_layers} decoder layers; it cannot be nested")


def identity(hidden_states: "torch.Tensor", *args: Any, **kwargs: Any) -> "torch.Tensor":
    """Stand in for the forward of a skipped layer. hidden_states: (B, T, W)."""
    return hidden_states


@contextmanager
def nested(model: "PreTrainedModel", skipped: Sequence[int]) -> Iterator[None]:
    """Make `model` its own nested behavior policy for the duration of the block.

    The weights stay shared and the modules in place; the cache of a skipped layer stays empty. The
    instance attribute shadows the class's forward, so deleting it restores the layer exactly.
    """
    layers = decoder_layers(model)
    try:
        for index in skipped:
            layers[index].forward = identity
        yield
    finally:
        for index in skipped:
            layers[index].__dict__.pop("forward", None)
