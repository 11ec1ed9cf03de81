"""Which layers the behavior policy skips: Definitions 1-3 of the paper, as arithmetic, and for which completions.

The behavior policy is the target model without a random subset of its layers. The subset is a pure function of
(seed, step), so that every rank and every resumed run draws the same one, and no global random state changes.
"""

import math
import random
from collections.abc import Iterable, Sequence


def num_skipped(num_layers: int, skip_ratio: float) -> int:
    """Return k = round(x N), a share of all layers and not of the valid ones (Table 1: N = 28 gives 1, 3, 4)."""
    return round(skip_ratio * num_layers)


def valid_layers(num_layers: int, border: int, layer_types: Sequence[str] | None = None) -> list[int]:
    """Return the indices of the layers that may be skipped (Definition 2), in ascending order.

    These are the layers i with b <= i < N - b, except the first layer of every attention type: transformers reads
    the cache length for that type's attention mask from it, so skipping it would silently corrupt left-padded batches.

    Args:
        num_layers: N.
        border: b.
        layer_types: the attention type of each layer (`config.layer_types`); None if all layers have the same type.
    """
    first_of_each_type = {layer_types.index(name) for name in layer_types} if layer_types else {0}
    return [index for index in range(border, num_layers - border) if index not in first_of_each_type]


def draw_skipped_layers(valid: Sequence[int], k: int, seed: int, step: int) -> list[int]:
    """Return the layers to skip at `step`: a uniformly drawn k-subset of `valid`, sorted (Definition 3).

    Raises:
        ValueError: if k exceeds the number of valid layers.
    """
    if k > len(valid):
        raise ValueError(f"{k} layers cannot be skipped where only {len(valid)} may be; lower skip_ratio or border")
    return sorted(random.Random(f"nested-reft/{seed}/{step}").sample(list(valid), k))


def num_whole(whole_share: float, num_generations: int) -> int:
    """Return how many of the G completions of a prompt are sampled without skipping: b G, where b is the share.

    Raises:
        ValueError: if b G is not a whole number from 1 to G - 1, unless b is 0; the message names the nearest shares.
    """
    wanted = whole_share * num_generations
    if whole_share and not (abs(wanted - round(wanted)) < 1e-4 and 0 < round(wanted) < num_generations):
        largest = max(1, num_generations - 1)
        nearest = sorted({min(max(count, 1), largest) for count in (math.floor(wanted), math.ceil(wanted))})
        raise ValueError(
            f"whole_share {whole_share:g} is {wanted:.4g} of the {num_generations} completions of a prompt, which is "
            f"not a whole number from 1 to {num_generations - 1}; set it to 0 or "
            + " or ".join(f"{count / num_generations:.6g} ({count})" for count in nearest)
        )
    return round(wanted)


def sampled_whole(rows: Iterable[int], whole_share: float, num_generations: int) -> list[bool]:
    """Return for each row of a roll-out whether it is sampled without skipping: the first b G rows of each prompt.

    The allocation is fixed, so that each prompt has its share, and every rank and every resumed run knows it.

    Args:
        rows: the indices of completions among those of all processes, where the G completions of a prompt are
            neighbors.
        whole_share: b.
        num_generations: G.
    """
    count = num_whole(whole_share, num_generations)
    return [row % num_generations < count for row in rows]


def bounds(num_layers: int, k: int, layer_parameters: int, lm_head_parameters: int) -> tuple[float, float]:
    """Return two upper bounds on the speed-up of a decode step that skips k of N layers.

    Args:
        num_layers: N.
        k: the number of skipped layers.
        layer_parameters: the parameters of one layer, on average.
        lm_head_parameters: the parameters of the output projection, which every decode step reads.

    Returns:
        N / (N - k), the bound if the layers take all of the time (Property 1), and the number of parameters that a
        decode step reads without skipping over the number that it reads with skipping, the bound if reading the
        weights takes all of the time.
    """
    weights = num_layers * layer_parameters + lm_head_parameters
    weights_left = (num_layers - k) * layer_parameters + lm_head_parameters
    return num_layers / (num_layers - k), weights / weights_left
