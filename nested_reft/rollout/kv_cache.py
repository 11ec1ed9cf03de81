"""The static KV cache of the roll-out engine."""

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin


def store_token(
    keys: torch.Tensor,
    values: torch.Tensor,
    every_row: torch.Tensor,
    positions: torch.Tensor,
    key_states: torch.Tensor,
    value_states: torch.Tensor,
) -> None:
    """Write keys and values (B, K, 1, D) of a token of each row into buffers (B, K, D, C) and (B, K, C, D).

    `every_row` holds 0 to B - 1, and `positions` the column of each, both (B,).
    """
    keys[every_row, :, :, positions] = key_states[:, :, 0]
    values[every_row, :, positions] = value_states[:, :, 0]


class Slot:
    """What a piece sees as the cache: the buffers of its layer, of which it reads the columns of the mask."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, end: int) -> None:
        self.keys, self.values, self.positions, self.end = keys, values, positions, end

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what is new, (B, K, 1, D), and return what attention reads, both (B, K, T, D)."""
        every_row = torch.arange(key_states.shape[0], device=key_states.device)  # compiled away
        store_token(self.keys, self.values, every_row, self.positions, key_states, value_states)
        return self.keys[..., : self.end].transpose(2, 3), self.values[:, :, : self.end]


class Place:
    """Where the next tokens go: shared by the cache layers of all model layers.

    Args:
        num_rows: B, the rows of the batch.
        num_columns: the most tokens of a row.
        device: where the buffers are.
    """

    def __init__(self, num_rows: int, num_columns: int, device: torch.device) -> None:
        self.num_rows, self.num_columns = num_rows, num_columns
        self.every_row = torch.arange(num_rows, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.long, device=device)  # (B,), the column of the next token
        self.end = 0  # attention reads columns [0, end)
        # while prompts are read: the rows that are filled, and the prompt of each
        self.prompts_of: tuple[torch.Tensor, torch.Tensor] | None = None


class RowsLayer(CacheLayerMixin):
    """Keys and values of one layer: row b holds its tokens in columns 0, 1, 2, ... without padding.

    Keys lie with their columns innermost, (B, K, D, T): scores of a token are sums over D for all columns at once.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on first use; a layer that never runs has no buffers."""
        rows, columns = self.place.num_rows, self.place.num_columns
        self.keys = key_states.new_zeros((rows, key_states.shape[1], key_states.shape[3], columns))
        self.values = value_states.new_zeros((rows, value_states.shape[1], columns, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what is new and return what attention reads, both (B, K, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        if place.prompts_of is not None:
            rows, prompts = place.prompts_of
            self.keys[rows, :, :, : key_states.shape[2]] = key_states[prompts].transpose(2, 3)
            self.values[rows, :, : value_states.shape[2]] = value_states[prompts]
            return key_states, value_states
        store_token(self.keys, self.values, place.every_row, place.positions, key_states, value_states)
        return self.keys[..., : place.end].transpose(2, 3), self.values[:, :, : place.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys: only a prompt's mask is made by the model."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of columns."""
        return self.place.num_columns
