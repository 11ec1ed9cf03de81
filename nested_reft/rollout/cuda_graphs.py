"""CUDA graphs of the compiled layers."""

from collections.abc import Callable, Hashable
from typing import Any

import torch

from nested_reft.rollout.layer_step import StepInputs


class CUDAGraphs:
    """CUDA graphs of compiled decode steps, one for each layer and number of attended columns.

    A CUDA graph reads and writes fixed addresses. All graphs share one memory pool, and read and write the same
    hidden states, so any layer's graph can follow any other's.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}  # by layer and number of attended columns
        self.weight_addresses: dict[int, list[int]] = {}  # by layer: the addresses that its graphs read
        self.static_inputs: dict[Hashable, torch.Tensor] = {}  # the tensors that graphs read
        self.copied_from: dict[Hashable, torch.Tensor] = {}  # the tensor last copied into each static input
        self.pool: Any = None

    def invalidate_if_moved(self, layer_index: int, weights: list[torch.Tensor]) -> None:
        """Drop the graphs of a layer whose weights are no longer at the addresses that the graphs read."""
        addresses = [weight.data_ptr() for weight in weights]
        if self.weight_addresses.setdefault(layer_index, addresses) != addresses:
            self.graphs = {key: graph for key, graph in self.graphs.items() if key[0] != layer_index}
            self.weight_addresses[layer_index] = addresses

    def static_input(self, name: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """Return the static input of this name and shape, holding the tensor's values.

        All layers pass the same attention mask and rotary embeddings, so a tensor is copied only once in a row.
        """
        key = (name, tensor.shape)
        if key not in self.static_inputs:
            self.static_inputs[key] = torch.empty_like(tensor)
        if tensor is not self.static_inputs[key] and tensor is not self.copied_from.get(key):
            self.static_inputs[key].copy_(tensor)
            self.copied_from[key] = tensor
        return self.static_inputs[key]

    def run(
        self,
        layer_index: int,
        compiled: Callable[[list[torch.Tensor]], torch.Tensor],
        inputs: StepInputs,
        attended_columns: int,
    ) -> torch.Tensor:
        """Replay the graph of a layer, captured at its first call; return the hidden states (B, 1, W)."""
        name = "hidden_states"
        hidden_states = self.static_input(name, inputs.hidden_states)
        # The graph overwrites this static input, so it no longer holds what was copied into it.
        self.copied_from.pop((name, hidden_states.shape), None)
        kwargs = [self.static_input((id(compiled), index), tensor) for index, tensor in enumerate(inputs.kwargs)]
        tensors = inputs._replace(hidden_states=hidden_states, kwargs=kwargs).flatten()
        if (layer_index, attended_columns) not in self.graphs:
            compiled(tensors)  # compiles, and lets libraries allocate their work space
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                hidden_states.copy_(compiled(tensors))
            self.pool = self.pool or graph.pool()
            self.graphs[layer_index, attended_columns] = graph
        self.graphs[layer_index, attended_columns].replay()
        return hidden_states
