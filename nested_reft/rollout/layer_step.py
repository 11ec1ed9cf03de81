"""The decode step of one layer as a function of tensors alone, so that layers can share one compiled function."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.func import functional_call
from transformers import Cache

from nested_reft.rollout.attention import ATTENTION
from nested_reft.rollout.kv_cache import LayerKVView


class StepInputs(NamedTuple):
    """All tensors that the decode step of a layer reads.

    A compiled step takes these tensors as one flat list, in this order.
    """

    weights: list[torch.Tensor]  # in the order of `LayerDecodeStep.weight_names`
    keys: torch.Tensor  # (B, K, D, C)
    values: torch.Tensor  # (B, K, C, D)
    positions: torch.Tensor  # (B,)
    hidden_states: torch.Tensor  # (B, 1, W)
    kwargs: list[torch.Tensor]  # as `flatten_kwargs` returns them

    def flatten(self) -> list[torch.Tensor]:
        """Return the tensors as the flat list that a compiled step takes."""
        return [*self.weights, self.keys, self.values, self.positions, self.hidden_states, *self.kwargs]

    @classmethod
    def unflatten(cls, tensors: Sequence[torch.Tensor], num_weights: int) -> "StepInputs":
        """Return the inputs that `flatten` made this list of."""
        keys, values, positions, hidden_states, *kwargs = tensors[num_weights:]
        return cls(list(tensors[:num_weights]), keys, values, positions, hidden_states, kwargs)


class LayerDecodeStep(torch.nn.Module):
    """The decode step of a layer as a function of tensors alone: weights and KV buffers are arguments.

    On CPU, linears with the same input (q/k/v, gate/up) are fused into one matmul, which saves thread
    synchronization. The fused weights are copied once per roll-out; on a GPU that memory is not worth it.

    Args:
        layer: a layer; the step can compute every layer of the same `layer_signature`.
        inputs: the inputs of an example call, without weights.
        kwargs: the keyword arguments of that call. Those that are not tensors become constants.
    """

    def __init__(self, layer: torch.nn.Module, inputs: StepInputs, kwargs: dict[str, Any]) -> None:
        super().__init__()
        # On the meta device: real weights would be baked into the exported program as constants.
        template = copy.deepcopy(layer).to("meta").eval()
        vars(template).pop("forward", None)  # the layer's forward is replaced at this moment
        for module in template.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = ATTENTION
        self.template = (template,)  # in a tuple, because weights of a submodule would be exported
        self.example_kwargs = kwargs
        self.cache_name = next(name for name, value in kwargs.items() if isinstance(value, Cache))
        self.fused: list[list[str]] = []
        if inputs.hidden_states.device.type == "cpu":
            on_meta = StepInputs.unflatten([tensor.to("meta") for tensor in inputs.flatten()], num_weights=0)
            self.fused = linears_sharing_input(template, on_meta.hidden_states, self.layer_kwargs(on_meta))
        for names in self.fused:
            fuse_linears(template, names)
        self.weight_names = list(self.weights(layer))

    def weights(self, layer: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of a layer by name, in the order of the arguments. Fused weights are copies."""
        named = weights_by_name(layer)
        for names in self.fused:
            for kind in ("weight", "bias"):
                parts = [named.pop(f"{name}.{kind}") for name in names if f"{name}.{kind}" in named]
                if parts:
                    named[f"{fused_name(names)}.{kind}"] = torch.cat(parts)
        return named

    def layer_kwargs(self, inputs: StepInputs) -> dict[str, Any]:
        """Return the keyword arguments of the layer for these inputs, with a view of its KV buffers as the cache."""
        kwargs = unflatten_kwargs(self.example_kwargs, inputs.kwargs)
        attended_columns = kwargs["attention_mask"].shape[-1]
        kwargs[self.cache_name] = LayerKVView(inputs.keys, inputs.values, inputs.positions, attended_columns)
        return kwargs

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Return the layer's output for flattened `StepInputs`."""
        inputs = StepInputs.unflatten(tensors, len(self.weight_names))
        weights = dict(zip(self.weight_names, inputs.weights, strict=True))
        return functional_call(self.template[0], weights, (inputs.hidden_states,), self.layer_kwargs(inputs))


def flatten_kwargs(kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors among keyword arguments, those inside of tuples included."""
    tensors = []
    for value in kwargs.values():
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, tuple):
            tensors.extend(value)
    return tensors


def unflatten_kwargs(example: dict[str, Any], tensors: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Return the keyword arguments of an example call with its tensors replaced, in the order of `flatten_kwargs`."""
    remaining = iter(tensors)
    kwargs: dict[str, Any] = {}
    for name, value in example.items():
        if isinstance(value, torch.Tensor):
            kwargs[name] = next(remaining)
        elif isinstance(value, tuple):
            kwargs[name] = tuple(next(remaining) for _ in value)
        else:
            kwargs[name] = value
    return kwargs


def layer_signature(layer: torch.nn.Module) -> tuple[str, str]:
    """Return all that the code of a layer depends on: layers of equal signature differ only in their weight values."""
    settings = [
        (name, type(module), [item for item in sorted(vars(module).items()) if is_setting(*item)])
        for name, module in layer.named_modules()
    ]
    tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in weights_by_name(layer).items()]
    return repr(settings), repr(tensors)


def is_setting(name: str, value: Any) -> bool:
    """Whether an attribute of a module can change what it computes. The index of the layer cannot."""
    plain = isinstance(value, bool | int | float | str | tuple | list | dict | None)
    return plain and name not in ("layer_idx", "training") and not name.startswith("_")


def weights_by_name(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a layer by name."""
    named = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def linears_sharing_input(
    layer: torch.nn.Module, hidden_states: torch.Tensor, kwargs: dict[str, Any]
) -> list[list[str]]:
    """Return groups of names of the linears that read the same tensor, such as those of q, k and v.

    The layer is called once to see which linear reads which tensor.

    Args:
        layer: the layer.
        hidden_states: the hidden states of the call, (B, 1, W).
        kwargs: the keyword arguments of the call.
    """
    groups: dict[tuple[int, bool], list[str]] = {}
    inputs = []  # keeps the tensors alive, so that no two have the same id

    def note_input(name: str, module: torch.nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        inputs.append(args[0])
        groups.setdefault((id(args[0]), module.bias is not None), []).append(name)

    hooks = [
        module.register_forward_pre_hook(partial(note_input, name))
        for name, module in layer.named_modules()
        if type(module) is torch.nn.Linear
    ]
    layer(hidden_states, **kwargs)
    for hook in hooks:
        hook.remove()
    return [names for names in groups.values() if len(names) > 1]


def fuse_linears(layer: torch.nn.Module, names: list[str]) -> None:
    """Compute linears that read the same tensor by one matmul: the first to be called computes the outputs of all.

    Args:
        layer: the layer; the fused linear is added to it as `fused_name(names)`.
        names: the linears, in the order in which the layer calls them.
    """
    linears = [layer.get_submodule(name) for name in names]
    sizes = [linear.out_features for linear in linears]
    fused = torch.nn.Linear(linears[0].in_features, sum(sizes), bias=linears[0].bias is not None, device="meta")
    layer.add_module(fused_name(names), fused)
    outputs: list[torch.Tensor] = []

    def forward(index: int, shared_input: torch.Tensor) -> torch.Tensor:
        if index == 0:
            outputs[:] = fused(shared_input).split(sizes, dim=-1)
        return outputs[index]

    for index, linear in enumerate(linears):
        linear.forward = partial(forward, index)


def fused_name(names: list[str]) -> str:
    """Return the name of the linear that `fuse_linears` adds for the linears of these names."""
    return "+".join(names).replace(".", "_")
