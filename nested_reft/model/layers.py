"""The stack of decoder layers of a model, and `nested`, which skips some of them for the duration of a block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from nested_reft.errors import NestingError
from nested_reft.nesting import valid_layers


def language_model(model: torch.nn.Module) -> PreTrainedModel:
    """Return the transformers model inside of its wrappers: PEFT, DistributedDataParallel, torch.compile.

    The adapters of PEFT are modules inside of the layers, so that they remain active.
    """
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
        has_length = isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
        if has_length and all(type(layer).__name__ in layer_classes for layer in module):
            return module
    raise NestingError(
        f"{type(model).__name__} has no plain stack of {num_layers} decoder layers; it cannot be nested"
    )


def skippable_layers(model: torch.nn.Module, border: int) -> list[int]:
    """Return the indices of the layers of this model that may be skipped at border b (`valid_layers`)."""
    config = language_model(model).config.get_text_config()
    return valid_layers(config.num_hidden_layers, border, getattr(config, "layer_types", None))


def parameter_counts(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of parameters of one layer, on average, and of the output projection."""
    layers = decoder_layers(model)
    per_layer = sum(parameter.numel() for parameter in layers.parameters()) // len(layers)
    return per_layer, model.get_output_embeddings().weight.numel()


def layers_return_tuples(model: torch.nn.Module) -> bool:
    """Return whether the layers return (hidden_states, ...), as Falcon's do, or hidden_states alone.

    The answer comes from a forward over one token and is kept on the stack of layers.
    """
    layers = decoder_layers(model)
    if not hasattr(layers, "return_tuples"):
        outputs: list[Any] = []
        hook = layers[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
        inner = language_model(model)
        with torch.no_grad():
            inner(input_ids=torch.zeros((1, 1), dtype=torch.long, device=inner.device), use_cache=False)
        hook.remove()
        layers.return_tuples = isinstance(outputs[0], tuple)
    return layers.return_tuples


@contextmanager
def replaced_forwards(layers: torch.nn.ModuleList, replacements: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of some layers, by index, for the duration of the block.

    The replacement is an instance attribute. It shadows the forward of the class, and with it gradient checkpointing.
    A previous instance attribute, such as the hook of a device map, is restored afterwards.
    """
    previous = {index: vars(layers[index]).get("forward") for index in replacements}
    try:
        for index, replacement in replacements.items():
            layers[index].forward = replacement
        yield
    finally:
        for index, forward in previous.items():
            vars(layers[index]).pop("forward", None)
            if forward is not None:
                layers[index].forward = forward


def identity(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Replace the forward of a skipped layer: return hidden_states (B, T, W) unchanged."""
    return hidden_states


def identity_in_tuple(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Replace the forward of a skipped layer that returns (hidden_states, attentions), as in Falcon and Bloom."""
    return hidden_states, None


@contextmanager
def nested(model: torch.nn.Module, skipped_layers: Sequence[int]) -> Iterator[None]:
    """Turn `model` into its nested behavior policy for the duration of the block (Definition 3).

    The weights stay shared and the modules stay in place; the KV cache of a skipped layer stays empty. The layers
    are restored also after an exception.

    Args:
        model: a transformers model, or one wrapped by PEFT, DistributedDataParallel or torch.compile.
        skipped_layers: the indices of the layers that become the identity.
    """
    replacement = identity_in_tuple if skipped_layers and layers_return_tuples(model) else identity
    with replaced_forwards(decoder_layers(model), dict.fromkeys(skipped_layers, replacement)):
        yield
