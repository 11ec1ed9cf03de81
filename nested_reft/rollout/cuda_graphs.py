"""CUDA graphs of compiled layers."""

from collections.abc import Callable
from typing import Any

import torch


class Graphs:
    """CUDA graphs of the steps of layers, one for each layer and number of columns, in one pool of memory.

    All graphs read and write the same hidden states, so they can follow each other in any order.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.addresses: dict[int, list[int]] = {}  # of the weights that the graphs of a layer read
        self.inputs: dict[tuple[Any, ...], torch.Tensor] = {}  # what graphs read, at addresses that stay
        self.sources: dict[tuple[Any, ...], torch.Tensor] = {}  # what was last copied there
        self.pool: Any = None

    def look_at(self, index: int, weights: list[torch.Tensor]) -> None:
        """Forget the graphs of a layer whose weights have moved: they would go on reading where those were."""
        addresses = [weight.data_ptr() for weight in weights]
        if self.addresses.setdefault(index, addresses) != addresses:
            self.graphs = {key: graph for key, graph in self.graphs.items() if key[0] != index}
            self.addresses[index] = addresses

    def keep(self, key: tuple[Any, ...], tensor: torch.Tensor) -> torch.Tensor:
        """Return the input of this key, with the tensor's values: copied once, however many layers read it."""
        key = (*key, tensor.shape)
        if key not in self.inputs:
            self.inputs[key] = torch.empty_like(tensor)
        if tensor is not self.inputs[key] and tensor is not self.sources.get(key):
            self.inputs[key].copy_(tensor)
            self.sources[key] = tensor
        return self.inputs[key]

    def run(
        self,
        index: int,
        step: Callable[..., Any],
        weights: list[torch.Tensor],
        buffers: tuple[torch.Tensor, ...],
        changing: list[torch.Tensor],
        columns: int,
    ) -> torch.Tensor:
        """Replay the graph of a layer, captured at its first call; return the hidden states (B, 1, W)."""
        hidden_states = self.keep((), changing[0])
        self.sources.pop((hidden_states.shape,), None)  # layers write there, so the next one is always copied
        arguments = [*weights, *buffers, hidden_states]
        arguments += [self.keep((index_of, id(step)), given) for index_of, given in enumerate(changing[1:])]
        if (index, columns) not in self.graphs:
            step(arguments)  # compiles, and lets libraries allocate what they need
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                hidden_states.copy_(step(arguments))
            self.pool = self.pool or graph.pool()
            self.graphs[index, columns] = graph
        self.graphs[index, columns].replay()
        return hidden_states
