"""The smaller model that a nested model equals: its layers that are not skipped, with new numbers.

A skipped layer returns its input, so that a model of N layers with k skipped equals the model of its N - k other
layers. A sampler that cannot skip layers, such as vLLM, samples from that model.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from nested_reft.errors import NestingError
from nested_reft.model.layers import decoder_layers, language_model


def smaller_config(config: PretrainedConfig, num_skipped: int) -> PretrainedConfig:
    """Return the config of the model that is left when any k layers are skipped.

    Raises:
        NestingError: if the config gives layers different values, so that it depends on which layers are left.
    """
    smaller = copy.deepcopy(config)
    text = smaller.get_text_config()
    for name, values in values_by_layer(text).items():
        if num_skipped and any(value != values[0] for value in values):
            found = ", ".join(map(str, unique(values)))
            raise NestingError(
                f"the layers of a {text.model_type} model have different {name} ({found}), and a smaller model would "
                "have to change with each set of skipped layers; set the sampler to engine"
            )
        setattr(text, name, values[num_skipped:])
    text.num_hidden_layers -= num_skipped
    return smaller


def values_by_layer(config: PretrainedConfig) -> dict[str, list[Any]]:
    """Return the keys of a config that have a value for each layer, such as `layer_types`."""
    return {
        name: values
        for name, values in config.to_dict().items()
        if isinstance(values, list) and len(values) == config.num_hidden_layers and "token_id" not in name
    }


def unique(values: Sequence[Any]) -> list[Any]:
    """Return the values without repetitions, in their order."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def check_equal_shapes(model: torch.nn.Module) -> None:
    """Refuse a model of which some layers have weights that others lack, or weights of another shape.

    Raises:
        NestingError: if there are such layers.
    """
    layers = decoder_layers(model)
    shapes = [{name: weight.shape for name, weight in layer.named_parameters()} for layer in layers]
    for index, of_layer in enumerate(shapes):
        if of_layer != shapes[0]:
            raise NestingError(
                f"the layers 0 and {index} of {type(language_model(model)).__name__} have different weights, and a "
                "smaller model would have to change with each set of skipped layers; set the sampler to engine"
            )


def renumbered_weights(model: torch.nn.Module, skipped: Sequence[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and weights of the smaller model that is left when some layers are skipped.

    The weights are those of the model itself, without a copy, except where a LoRA adapter is added to them. A weight
    that two modules share, such as that of a tied output head, is yielded once.

    Args:
        model: the model, which may be wrapped and may have LoRA adapters.
        skipped: the indices of the skipped layers.
    """
    inner = language_model(model)
    layers = decoder_layers(inner)
    prefix = next(name for name, module in inner.named_modules() if module is layers) + "."
    left = [index for index in range(len(layers)) if index not in skipped]
    new_index = {old: new for new, old in enumerate(left)}
    for name, weight in merged_weights(inner):
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            if int(index) not in new_index:
                continue
            name = f"{prefix}{new_index[int(index)]}.{rest}"
        yield name, weight


@torch.no_grad()
def merged_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and weights of a model as if its LoRA adapters were merged; the model is not changed."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # it is part of the weight that it adapts
            continue
        weight = parameter.detach()
        module, is_adapted, rest = name.partition(".base_layer.")
        if is_adapted:
            name = f"{module}.{rest}"
            if rest == "weight":
                adapted = model.get_submodule(module)
                weight = weight + sum(adapted.get_delta_weight(adapter) for adapter in adapted.active_adapters)
        yield name, weight
