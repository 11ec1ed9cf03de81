"""Compiled decode steps of the layers, which compose into every nested model.

Each distinct layer *type* is compiled once, with weights as arguments. Skipping a layer only changes which compiled
functions are called, so a new set of skipped layers never recompiles: the model's own forward runs, and the forward
of each layer that is not skipped is replaced by its compiled step. On a GPU the compiled step of each layer is
captured as a CUDA graph, and a set of skipped layers is a choice among these graphs.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from nested_reft.model.layers import decoder_layers, layers_return_tuples, replaced_forwards
from nested_reft.rollout.cuda_graphs import CUDAGraphs
from nested_reft.rollout.kv_cache import CachePositions
from nested_reft.rollout.layer_step import LayerDecodeStep, StepInputs, flatten_kwargs, layer_signature

CompiledStep = Callable[[list[torch.Tensor]], torch.Tensor]  # flattened StepInputs -> hidden states (B, 1, W)


class CompiledLayers:
    """The compiled decode steps of a model's layers, for KV buffers of one size.

    Args:
        model: the model.
        cache: its KV cache, one `StaticKVLayer` per layer.
        positions: the write positions that the cache layers share.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, positions: CachePositions) -> None:
        self.layers, self.cache, self.positions = decoder_layers(model), cache, positions
        self.return_tuples = layers_return_tuples(model)
        signatures = [layer_signature(layer) for layer in self.layers]
        self.type_of_layer = [signatures.index(signature) for signature in signatures]  # the first layer of its type
        self.steps: dict[int, tuple[LayerDecodeStep, CompiledStep]] = {}  # by layer type
        self.graphs = CUDAGraphs() if positions.positions.device.type == "cuda" else None

    @contextmanager
    def installed(self, skipped: Sequence[int]) -> Iterator[None]:
        """Replace the forward of each layer that is not skipped, for the duration of one roll-out."""
        active = [index for index in range(len(self.layers)) if index not in skipped]
        with replaced_forwards(self.layers, {index: self.replacement_forward(index) for index in active}):
            yield

    def replacement_forward(self, index: int) -> Callable[..., Any]:
        """Return a forward of a layer for one roll-out: compiled when decoding, the layer's own in a prefill."""
        layer, kv_layer = self.layers[index], self.cache.layers[index]
        own_forward = layer.forward
        weights: list[torch.Tensor] | None = None

        def forward(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            nonlocal weights
            # A cache layer allocates its buffers when the layer's own forward first runs.
            if self.positions.prefill_rows is not None or not kv_layer.is_initialized:
                return own_forward(hidden_states, **kwargs)
            inputs = StepInputs(
                weights or [],
                kv_layer.keys,
                kv_layer.values,
                self.positions.positions,
                hidden_states,
                flatten_kwargs(kwargs),
            )
            if weights is None:  # re-read once per roll-out: the optimizer has stepped since the last one
                weights = self.read_weights(index, inputs, kwargs)
                inputs = inputs._replace(weights=weights)
            _, compiled = self.steps[self.type_of_layer[index]]
            if self.graphs is None:
                output = compiled(inputs.flatten())
            else:
                output = self.graphs.run(index, compiled, inputs, kwargs["attention_mask"].shape[-1])
            return (output, None) if self.return_tuples else output

        return forward

    def read_weights(self, index: int, inputs: StepInputs, kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """Return the current weights of a layer in the order of its compiled step, compiling the step at first use."""
        layer, layer_type = self.layers[index], self.type_of_layer[index]
        if layer_type not in self.steps:
            step = LayerDecodeStep(layer, inputs, kwargs)
            example = inputs._replace(weights=list(step.weights(layer).values()))
            self.steps[layer_type] = step, compile_step(step, example, kwargs["attention_mask"])
        step, _ = self.steps[layer_type]
        weights = list(step.weights(layer).values())
        if self.graphs is not None:
            self.graphs.invalidate_if_moved(index, weights)
        return weights


def compile_step(step: LayerDecodeStep, example: StepInputs, attention_mask: torch.Tensor) -> CompiledStep:
    """Compile a step, which takes a few seconds.

    Args:
        step: the step.
        example: the inputs of an example call. All their shapes become constants but the length of the mask.
        attention_mask: the attention mask (B, 1, 1, T), which is one of the inputs.
    """
    if attention_mask.device.type == "cuda":  # calls are captured in a CUDA graph, so their overhead does not matter
        compiled = torch.compile(step, fullgraph=True)
        return lambda tensors: hidden_states_of(compiled(*tensors))
    tensors = example.flatten()
    columns = torch.export.Dim("columns", min=2, max=example.keys.shape[3] - 1)
    shapes = tuple({3: columns} if tensor is attention_mask else None for tensor in tensors)
    program = torch.export.export(step, tuple(tensors), dynamic_shapes=(shapes,))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own code
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/step.pt2")
        loader = torch._inductor.aoti_load_package(package).loader
    return lambda tensors: loader.boxed_run(tensors)[0]


def hidden_states_of(output: Any) -> torch.Tensor:
    """Return the hidden states of a layer that returns them alone or as the first of several."""
    return output[0] if isinstance(output, tuple) else output
