"""The static KV cache: buffers that are allocated once, in which each batch row writes at its own position."""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import CacheLayerMixin


class PrefillRows(NamedTuple):
    """The batch rows that a prefill fills."""

    rows: torch.Tensor  # (R,)
    prompts: torch.Tensor  # (R,): for each row, the index of its prompt among the distinct prompts of the prefill


class CachePositions:
    """Write positions of each batch row, shared by the KV caches of all layers.

    Args:
        batch_size: B, the rows of the batch.
        num_columns: C, the largest number of tokens that a row can hold.
        device: the device of the buffers.
    """

    def __init__(self, batch_size: int, num_columns: int, device: torch.device) -> None:
        self.batch_size, self.num_columns = batch_size, num_columns
        self.row_indices = torch.arange(batch_size, device=device)  # (B,)
        self.column_indices = torch.arange(num_columns, device=device)
        self.positions = torch.zeros(batch_size, dtype=torch.long, device=device)  # (B,), the column of the next token
        self.positions_on_host = [0] * batch_size  # the same numbers; reading them from a GPU would wait for the GPU
        self.attended_columns = 0  # attention reads columns [0, attended_columns)
        self.prefill_rows: PrefillRows | None = None  # None while decoding

    def start(self, rows: list[int], positions: list[int]) -> None:
        """Set the positions of some rows."""
        self.positions[rows] = torch.tensor(positions, device=self.positions.device)
        for row, position in zip(rows, positions, strict=True):
            self.positions_on_host[row] = position

    def advance(self) -> None:
        """Move each row on by the token that was just decoded."""
        self.positions += 1
        self.positions_on_host = [position + 1 for position in self.positions_on_host]

    def reset(self, rows: torch.Tensor, rows_on_host: list[int]) -> None:
        """Move some rows back to column 0; `rows` (B,) is boolean and marks the same rows as `rows_on_host` lists."""
        self.positions.masked_fill_(rows, 0)
        for row in rows_on_host:
            self.positions_on_host[row] = 0


class StaticKVLayer(CacheLayerMixin):
    """Keys and values of one layer: row b holds its tokens in columns 0, 1, 2, ... without padding.

    Keys are stored with their columns innermost, (B, K, D, C): the scores of a token are then sums over D that run
    over all columns at once.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, positions: CachePositions) -> None:
        super().__init__()
        self.positions = positions

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers on first use; a layer that is always skipped has none."""
        rows, columns = self.positions.batch_size, self.positions.num_columns
        self.keys = key_states.new_zeros((rows, key_states.shape[1], key_states.shape[3], columns))
        self.values = value_states.new_zeros((rows, value_states.shape[1], columns, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values and return those that attention reads, both (B, K, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions = self.positions
        if positions.prefill_rows is not None:
            rows, prompts = positions.prefill_rows
            self.keys[rows, :, :, : key_states.shape[2]] = key_states[prompts].transpose(2, 3)
            self.values[rows, :, : value_states.shape[2]] = value_states[prompts]
            return key_states, value_states
        store_token(self.keys, self.values, positions.row_indices, positions.positions, key_states, value_states)
        return attended(self.keys, self.values, positions.attended_columns)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys of a prefill. The engine makes the masks of decode steps itself."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: the engine passes the positions of tokens to the model, which need not be counted here."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of columns."""
        return self.positions.num_columns


class LayerKVView:
    """The KV-cache interface that a compiled layer sees: its own buffers, truncated to the attention mask's length."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, attended_columns: int
    ) -> None:
        self.keys, self.values, self.positions, self.attended_columns = keys, values, positions, attended_columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values (B, K, 1, D) of a token and return those that attention reads, (B, K, T, D)."""
        row_indices = torch.arange(key_states.shape[0], device=key_states.device)  # the compiler fuses it away
        store_token(self.keys, self.values, row_indices, self.positions, key_states, value_states)
        return attended(self.keys, self.values, self.attended_columns)


def store_token(
    keys: torch.Tensor,
    values: torch.Tensor,
    row_indices: torch.Tensor,
    positions: torch.Tensor,
    key_states: torch.Tensor,
    value_states: torch.Tensor,
) -> None:
    """Write the keys and values (B, K, 1, D) of a token of each row into buffers (B, K, D, C) and (B, K, C, D).

    `row_indices` are 0 to B - 1, and `positions` the column that each row writes, both (B,).
    """
    keys[row_indices, :, :, positions] = key_states[:, :, 0]
    values[row_indices, :, positions] = value_states[:, :, 0]


def attended(keys: torch.Tensor, values: torch.Tensor, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first columns of buffers (B, K, D, C) and (B, K, C, D), both as (B, K, T, D)."""
    return keys[..., :num_columns].transpose(2, 3), values[:, :, :num_columns]
