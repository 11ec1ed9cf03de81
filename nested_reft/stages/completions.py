"""The completions of an optimizer step as rows of a table, and the micro-batches that the rows came from.

Lists of a row have the length T of its micro-batch, padding included, so that replay computes with the same shapes.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nested_reft.config.sections import Nesting
from nested_reft.off_policy import MicroBatch, ratio_and_weights

# The tensors (B, T) of a micro-batch, and their types in a file.
TENSORS = {
    "completion_ids": pa.int32(),
    "completion_mask": pa.bool_(),
    "sampling_per_token_logps": pa.float32(),
    "old_per_token_logps": pa.float32(),
    "per_token_logps": pa.float32(),
    "token_weights": pa.float32(),
}


def lists(rows: Sequence[torch.Tensor], kind: pa.DataType) -> pa.Array:
    """Return tensors (n,) of any lengths as an array of lists."""
    offsets = np.cumsum([0, *map(len, rows)])
    values = torch.cat(list(rows)).float() if kind == pa.float32() else torch.cat(list(rows))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values.numpy(), kind, safe=False))


def to_table(
    step: int,
    batches: Sequence[MicroBatch],
    num_processes: int,
    skipped_layers: Sequence[int],
    reward_names: Sequence[str],
    mitigation: str,
    nesting: Nesting,
    tokenizer: Any,
) -> pa.Table:
    """Return the completions of an optimizer step, a row each.

    Args:
        step: the number of the step, as in `metrics.jsonl`.
        batches: the micro-batches of all ranks, with the tensors of `trainer.COMPLETION_TENSORS`.
        num_processes: the number of ranks.
        skipped_layers: the layers that were skipped while sampling.
        reward_names: the names of the reward functions.
        mitigation: the mitigation of the run.
        nesting: its parameters.
        tokenizer: the tokenizer of the model.
    """
    tables = []
    for index, batch in enumerate(batches):
        size = len(batch["completion_ids"])
        _, weights = ratio_and_weights(batch, mitigation, nesting, bool(skipped_layers))
        tensors = {**batch, "token_weights": weights}
        masks = batch["prompt_mask"].bool(), batch["completion_mask"].bool()
        prompts = [ids[mask] for ids, mask in zip(batch["prompt_ids"], masks[0], strict=True)]
        completions = [ids[mask] for ids, mask in zip(batch["completion_ids"], masks[1], strict=True)]
        columns = {
            "step": pa.array([step] * size, pa.int32()),
            "rank": pa.array([index // (len(batches) // num_processes)] * size, pa.int32()),
            "micro_batch": pa.array([index % (len(batches) // num_processes)] * size, pa.int32()),
            "prompt": pa.array(tokenizer.batch_decode(prompts), pa.string()),
            "completion": pa.array(tokenizer.batch_decode(completions), pa.string()),
            "prompt_ids": lists(prompts, pa.int32()),
        }
        for name, kind in TENSORS.items():
            columns[name] = lists(list(tensors[name]), kind) if name in tensors else pa.nulls(size, pa.list_(kind))
        for name, rewards in zip(reward_names, batch["rewards"].T, strict=True):
            columns[f"rewards/{name}"] = pa.array(rewards.numpy(), pa.float32())
        columns["advantage"] = pa.array(batch["advantages"].float().numpy(), pa.float32())
        columns["is_whole"] = pa.array(batch["is_whole"].numpy())
        columns["skipped_layers"] = pa.array([list(skipped_layers)] * size, pa.list_(pa.int32()))
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def to_micro_batches(rows: pa.Table) -> list[dict[str, torch.Tensor]]:
    """Return the micro-batches of a step, those of rank 0 first, with the tensors that `off_policy` needs.

    Args:
        rows: the rows of the step in their order.
    """
    place = rows["rank"].to_numpy() * (1 + rows["micro_batch"].to_numpy().max()) + rows["micro_batch"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(place)) + 1), len(place)]
    batches = []
    for start, end in pairwise(starts):
        part = rows.slice(start, end - start).combine_chunks()
        batch = {"advantages": torch.tensor(part["advantage"].to_numpy())}
        if "is_whole" in part.column_names:  # a record of an earlier version lacks it
            batch["is_whole"] = torch.tensor(part["is_whole"].to_numpy(zero_copy_only=False))
        for name in ("old_per_token_logps", "sampling_per_token_logps", "per_token_logps", "completion_mask"):
            if part[name].null_count == 0:
                values = part[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                batch[name] = torch.tensor(values).view(len(part), -1)  # (B, T)
        batch["completion_mask"] = batch["completion_mask"].long()
        batches.append(batch)
    return batches
