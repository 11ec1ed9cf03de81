"""The stack of decoder layers of a model, and `nested`, which skips some of them for a while."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from nested_reft.errors import NestingError
from nested_reft.nesting import valid_layers


def language_model(model: torch.nn.Module) -> PreTrainedModel:
    """Return transformers' own model inside of whatever wraps it: PEFT, DistributedDataParallel, torch.compile."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """Return the stack of decoder layers, found by its structure and not by its name.

    Raises:
        NestingError: if the model has no plain stack of `num_hidden_layers` layers.
    """
    model = language_model(model)
    num_layers = model.config.get_text_config().num_hidden_layers
    layer_classes = model._no_split_modules or ()
    for module in model.modules():
        is_stack = isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
        if is_stack and all(type(layer).__name__ in layer_classes for layer in module):
            return module
    raise NestingError(
        f"{type(model).__name__} has no plain stack of {num_layers} decoder layers; it cannot be nested"
    )


def skippable_layers(model: torch.nn.Module, border: int) -> list[int]:
    """Return the indices of the model's layers that may be skipped at border b."""
    config = language_model(model).config.get_text_config()
    return valid_layers(config.num_hidden_layers, border, getattr(config, "layer_types", None))


def parameter_counts(model: PreTrainedModel) -> tuple[int, int]:
    """Return the parameters of one layer, in the mean, and of the output projection."""
    layers = decoder_layers(model)
    of_layer = sum(parameter.numel() for parameter in layers.parameters()) // len(layers)
    return of_layer, model.get_output_embeddings().weight.numel()


def layers_return_tuples(model: torch.nn.Module) -> bool:
    """Whether layers return (hidden_states, ...), as Falcon's, or hidden_states; one token tells, once per model."""
    layers = decoder_layers(model)
    if not hasattr(layers, "return_tuples"):
        seen: list[Any] = []
        hook = layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        inner = language_model(model)
        with torch.no_grad():
            inner(input_ids=torch.zeros((1, 1), dtype=torch.long, device=inner.device), use_cache=False)
        hook.remove()
        layers.return_tuples = isinstance(seen[0], tuple)
    return layers.return_tuples


@contextmanager
def replaced_forwards(layers: torch.nn.ModuleList, stand_ins: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Exchange the forward of some layers for the duration of the block.

    An instance attribute shadows the class's forward, and with it gradient checkpointing; what was there
    before, such as the hook of a device map, comes back.
    """
    before = {index: vars(layers[index]).get("forward") for index in stand_ins}
    try:
        for index, stand_in in stand_ins.items():
            layers[index].forward = stand_in
        yield
    finally:
        for index, forward in before.items():
            vars(layers[index]).pop("forward", None)
            if forward is not None:
                layers[index].forward = forward


def identity(hidden_states: "torch.Tensor", *args: Any, **kwargs: Any) -> "torch.Tensor":
    """Stand in for the forward of a skipped layer. hidden_states: (B, T, W)."""
    return hidden_states


def identity_in_tuple(hidden_states: "torch.Tensor", *args: Any, **kwargs: Any) -> tuple["torch.Tensor", None]:
    """Do the same where layers return (hidden_states, attentions), as those of Falcon or Bloom."""
    return hidden_states, None


@contextmanager
def nested(model: "torch.nn.Module", skipped: Sequence[int]) -> Iterator[None]:
    """Make `model` its own nested behavior policy for the duration of the block.

    The weights stay shared and the modules in place; the cache of a skipped layer stays empty.
    """
    stand_in = identity_in_tuple if skipped and layers_return_tuples(model) else identity
    with replaced_forwards(decoder_layers(model), dict.fromkeys(skipped, stand_in)):
        yield
