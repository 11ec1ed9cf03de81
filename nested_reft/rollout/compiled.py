"""The decode step of one layer as a compiled piece; the pieces of all layers compose into every nested model.

A layer is compiled as a function of its weights and of its buffers, so layers that are built alike share one
piece, and no mask ever compiles anything: the model's own forward runs, and finds in the place of each layer
that is not skipped its piece. On a GPU each layer's piece is captured as a CUDA graph on top, with the same
freedom: a mask is a choice among graphs.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.func import functional_call
from transformers import Cache, PreTrainedModel

from nested_reft.model.layers import decoder_layers, layers_return_tuples, replaced_forwards
from nested_reft.rollout.attention import ATTENTION
from nested_reft.rollout.cuda_graphs import Graphs
from nested_reft.rollout.kv_cache import Slot


def build_of(layer: torch.nn.Module) -> tuple[Any, ...]:
    """Return what a layer's code depends on beside the values of its weights: layers of equal build share a piece."""
    settings = [
        (name, type(module), [item for item in sorted(vars(module).items()) if is_setting(*item)])
        for name, module in layer.named_modules()
    ]
    tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in weights_of(layer).items()]
    return repr(settings), repr(tensors)


def weights_of(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a layer by name."""
    named = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def is_setting(name: str, value: Any) -> bool:
    """Whether an attribute of a module is a setting of it; which place the layer has is none."""
    plain = isinstance(value, bool | int | float | str | tuple | list | dict | None)
    return plain and name not in ("layer_idx", "training") and not name.startswith("_")


def siblings(layer: torch.nn.Module, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> list[list[str]]:
    """Return the names of the linear maps of a layer that read the same tensor, such as those of q, k and v.

    Args:
        layer: to be called.
        hidden_states: of the call, (B, 1, W).
        kwargs: of the call.
    """
    readers: dict[tuple[int, bool], list[str]] = {}
    inputs = []  # kept, so that no two have the same id

    def note(name: str, module: torch.nn.Linear, given: tuple[torch.Tensor, ...]) -> None:
        inputs.append(given[0])
        readers.setdefault((id(given[0]), module.bias is not None), []).append(name)

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in layer.named_modules()
        if type(module) is torch.nn.Linear
    ]
    layer(hidden_states, **kwargs)
    for hook in hooks:
        hook.remove()
    return [names for names in readers.values() if len(names) > 1]


def join(layer: torch.nn.Module, names: list[str]) -> None:
    """Make one matrix product of linear maps that read the same tensor, in the order in which they are called."""
    parts = [layer.get_submodule(name) for name in names]
    sizes = [part.out_features for part in parts]
    joined = torch.nn.Linear(parts[0].in_features, sum(sizes), bias=parts[0].bias is not None, device="meta")
    layer.add_module(joined_name(names), joined)
    outputs: list[torch.Tensor] = []

    def forward(index: int, given: torch.Tensor) -> torch.Tensor:
        if index == 0:
            outputs[:] = joined(given).split(sizes, dim=-1)
        return outputs[index]

    for index, part in enumerate(parts):
        part.forward = partial(forward, index)


def joined_name(names: list[str]) -> str:
    """Return what `join` calls the module that it makes of these."""
    return "+".join(names).replace(".", "_")


class Step(torch.nn.Module):
    """The decode step of a layer as a function of tensors alone: its weights and buffers are arguments.

    On a CPU linear maps of the same tensor are joined: fewer products, and fewer waits of cores for each other. Their
    weights are then copied for each roll-out, which a GPU's memory is too precious for.

    Args:
        layer: whose step.
        buffers: keys, values and positions of an example call.
        hidden_states: of it, (B, 1, W).
        kwargs: of it; what is no tensor in them is taken for constant.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        buffers: Sequence[torch.Tensor],
        hidden_states: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        # On no device: were its weights those of a real layer, the compiler would take them for constants.
        template = copy.deepcopy(layer).to("meta").eval()
        vars(template).pop("forward", None)  # the piece that is about to be made stands in the layer's place
        for module in template.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = ATTENTION
        self.of_layer = (template,)  # in a tuple: no submodule, whose weights would be exported
        self.kwargs = kwargs
        self.cache_name = next(name for name, value in kwargs.items() if isinstance(value, Cache))
        self.joined: list[list[str]] = []
        if hidden_states.device.type == "cpu":
            on_meta = [tensor.to("meta") for tensor in (*buffers, hidden_states, *tensors_of(kwargs))]
            self.joined = siblings(template, on_meta[3], self.filled_in(on_meta[:3], on_meta[4:]))
        for names in self.joined:
            join(template, names)
        self.names = list(self.weights(layer))

    def weights(self, layer: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of a layer of this build by name, in the order of the arguments; joined ones copied."""
        named = weights_of(layer)
        for names in self.joined:
            for kind in ("weight", "bias"):
                parts = [named.pop(f"{name}.{kind}") for name in names if f"{name}.{kind}" in named]
                if parts:
                    named[f"{joined_name(names)}.{kind}"] = torch.cat(parts)
        return named

    def filled_in(self, buffers: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Return the keyword arguments of a call with these buffers, and these in the place of `tensors_of` kwargs."""
        remaining = iter(tensors)
        kwargs: dict[str, Any] = {}
        for name, value in self.kwargs.items():
            if isinstance(value, torch.Tensor):
                kwargs[name] = next(remaining)
            elif isinstance(value, tuple):
                kwargs[name] = tuple(next(remaining) for _ in value)
            else:
                kwargs[name] = value
        keys, values, positions = buffers
        kwargs[self.cache_name] = Slot(keys, values, positions, kwargs["attention_mask"].shape[-1])
        return kwargs

    def forward(self, *arguments: torch.Tensor) -> Any:
        """Return the layer's output for (*weights, keys, values, positions, hidden_states, *tensors of kwargs)."""
        weights = dict(zip(self.names, arguments, strict=False))
        *buffers, hidden_states = arguments[len(self.names) :][:4]
        kwargs = self.filled_in(buffers, arguments[len(self.names) + 4 :])
        return functional_call(self.of_layer[0], weights, (hidden_states,), kwargs)


def tensors_of(kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors among keyword arguments and in their tuples, as `Step` expects them."""
    tensors = []
    for value in kwargs.values():
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, tuple):
            tensors.extend(value)
    return tensors


def compile_step(step: Step, arguments: list[torch.Tensor], mask: torch.Tensor) -> Callable[..., Any]:
    """Compile a step, for a few seconds; return a function of a list of its arguments.

    Args:
        step: what to compile.
        arguments: of an example call. All shapes are taken for constant but the columns of the mask.
        mask: the attention mask, which is one of the arguments.
    """
    if mask.device.type == "cuda":  # what it costs to call does not matter: the calls are captured in a CUDA graph
        compiled = torch.compile(step, fullgraph=True)
        return lambda given: first(compiled(*given))
    columns = torch.export.Dim("columns", min=2, max=arguments[len(step.names)].shape[3] - 1)
    shapes = tuple({3: columns} if argument is mask else None for argument in arguments)
    program = torch.export.export(step, tuple(arguments), dynamic_shapes=(shapes,))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch against itself
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/step.pt2")
        loader = torch._inductor.aoti_load_package(package).loader
    return lambda given: loader.boxed_run(given)[0]


def first(output: Any) -> torch.Tensor:
    """Return the hidden states of a layer that returns them, alone or as the first of several."""
    return output[0] if isinstance(output, tuple) else output


class Pieces:
    """The pieces of a model's layers, for buffers of one size.

    Args:
        model: the model.
        cache: its cache, one `RowsLayer` per layer.
        place: what the cache layers share.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, place: Any) -> None:
        self.layers, self.cache, self.place = decoder_layers(model), cache, place
        self.return_tuples = layers_return_tuples(model)
        builds = [build_of(layer) for layer in self.layers]
        self.first_alike = [builds.index(build) for build in builds]  # by layer: the first one built like it
        self.steps: dict[int, tuple[Step, Callable[..., Any]]] = {}
        self.graphs = Graphs() if place.positions.device.type == "cuda" else None

    @contextmanager
    def in_place(self, skipped: Sequence[int]) -> Iterator[None]:
        """Put the piece of each layer that is not skipped in its place for the duration of the block."""
        active = [index for index in range(len(self.layers)) if index not in skipped]
        with replaced_forwards(self.layers, {index: self.piece(index) for index in active}):
            yield

    def piece(self, index: int) -> Callable[..., Any]:
        """Return what runs in the place of a layer: the compiled step for a token, the layer itself for a prompt."""
        layer, of_cache, alike = self.layers[index], self.cache.layers[index], self.first_alike[index]
        read_prompt = layer.forward
        weights: list[torch.Tensor] = []

        def forward(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            if self.place.prompts_of is not None or not of_cache.is_initialized:
                return read_prompt(hidden_states, **kwargs)
            mask = kwargs["attention_mask"]
            buffers = (of_cache.keys, of_cache.values, self.place.positions)
            changing = [hidden_states, *tensors_of(kwargs)]
            if alike not in self.steps:
                step = Step(layer, buffers, hidden_states, kwargs)
                example = [*step.weights(layer).values(), *buffers, *changing]
                self.steps[alike] = step, compile_step(step, example, mask)
            step, run = self.steps[alike]
            if not weights:  # the first token
                weights.extend(step.weights(layer).values())
                if self.graphs is not None:
                    self.graphs.look_at(index, weights)
            if self.graphs is None:
                output = run([*weights, *buffers, *changing])
            else:
                output = self.graphs.run(index, run, weights, buffers, changing, mask.shape[-1])
            return (output, None) if self.return_tuples else output

        return forward
