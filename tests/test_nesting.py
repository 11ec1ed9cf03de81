"""Which layers are skipped: a pure function of (seed, step), uniform, and the same on every rank."""

import itertools
import random
import socket
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nested_reft.model.layers import nested
from nested_reft.nesting import bounds, draw_skipped_layers, num_skipped, num_whole, sampled_whole, valid_layers


def test_table_1_of_the_paper():
    assert [num_skipped(28, ratio) for ratio in (0.05, 0.10, 0.15)] == [1, 3, 4]


def test_valid_layers_leave_out_borders_and_the_first_of_each_attention_type():
    assert valid_layers(6, 1) == [1, 2, 3, 4]
    assert valid_layers(6, 2) == [2, 3]
    assert valid_layers(6, 1, ["full", "sliding", "full", "sliding", "full", "full"]) == [2, 3, 4]
    assert valid_layers(2, 1) == []


def test_bounds_on_the_speed_up():
    """Without an output projection both are N / (N - k); reading one takes time that no skipped layer saves."""
    assert bounds(28, 0, 100, 50) == (1.0, 1.0)
    assert bounds(28, 4, 100, 0) == (28 / 24, 28 / 24)
    assert bounds(28, 4, 100, 400) == (28 / 24, 32 / 28)


def test_the_whole_model_samples_the_first_completions_of_each_prompt_on_any_rank():
    assert sampled_whole(range(8), 0.25, 4) == [True, False, False, False] * 2
    assert sampled_whole(range(3, 6), 0.5, 4) == [False, True, True]  # a rank whose rows begin within a group
    assert sampled_whole(range(4), 0.0, 4) == [False] * 4
    assert (num_whole(0.1, 10), num_whole(0.333333, 6), num_whole(0.875, 8)) == (1, 2, 7)


@pytest.mark.parametrize(
    ("share", "size", "nearest"),
    [
        (0.3, 8, r"0.3 is 2.4 of the 8 .*set it to 0 or 0.25 \(2\) or 0.375 \(3\)"),
        (0.05, 8, r"0 or 0.125 \(1\)$"),
        (0.99, 8, r"0 or 0.875 \(7\)$"),
        (0.3, 2, r"0 or 0.5 \(1\)$"),
        (0.3, 3, r"0 or 0.333333 \(1\)$"),
    ],
)
def test_a_share_that_is_no_whole_number_of_completions_is_refused_with_the_nearest(share, size, nearest):
    with pytest.raises(ValueError, match=nearest):
        num_whole(share, size)


def test_draws_are_a_pure_function_of_seed_and_step():
    valid = valid_layers(28, 1)
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draws = [draw_skipped_layers(valid, 4, seed, step) for seed in range(3) for step in range(20)]
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert (np.random.get_state()[1] == state[2]).all()  # noqa: NPY002
    assert draws == [draw_skipped_layers(valid, 4, seed, step) for seed in range(3) for step in range(20)]
    assert len({tuple(layers) for layers in draws}) > 55  # seeds and steps both matter
    assert draw_skipped_layers(valid, 4, 0, 0) == [1, 14, 18, 24]  # another version of Python must draw the same


def test_draws_are_uniform():
    """Every subset is as likely as any other: by chi-square over 20,000 draws, of all subsets and of layers."""
    valid = valid_layers(8, 1)
    subsets = Counter(tuple(draw_skipped_layers(valid, 3, 0, step)) for step in range(20_000))
    assert set(subsets) == set(itertools.combinations(valid, 3))
    assert stats.chisquare(list(subsets.values())).pvalue > 1e-3

    valid = valid_layers(28, 1)  # of the paper's models
    draws = [draw_skipped_layers(valid, 4, 0, step) for step in range(20_000)]
    counts = np.bincount(np.concatenate(draws), minlength=28)[1:-1]
    # layers of one layers exclude each other: the counts vary by (n-k)/(n-1) of what independent draws would
    statistic = stats.chisquare(counts).statistic / ((26 - 4) / (26 - 1))
    assert 1e-3 < stats.chi2.sf(statistic, df=25) < 1 - 1e-3
    # the chi-square sees a layer that comes one time in twenty too often
    biased = [layers if step % 20 else sorted({1, *layers[1:]}) for step, layers in enumerate(draws)]
    counts = np.bincount(np.concatenate(biased), minlength=28)[1:-1]
    assert stats.chisquare(counts).pvalue < 1e-3


LAYERS = st.integers(min_value=3, max_value=100)


@given(LAYERS, st.integers(1, 10), st.floats(0, 1), st.integers(0, 2**32), st.integers(0, 10**6), st.data())
def test_draws_hold_k_valid_layers_or_are_refused(num_layers, border, skip_ratio, seed, step, data):
    kinds = data.draw(
        st.none() | st.lists(st.sampled_from(["full", "sliding"]), min_size=num_layers, max_size=num_layers)
    )
    valid = valid_layers(num_layers, border, kinds)
    assert all(border <= layer < num_layers - border for layer in valid)
    assert not {(kinds or ["full"]).index(kind) for kind in kinds or ["full"]} & set(valid)
    k = num_skipped(num_layers, skip_ratio)
    assert abs(k - skip_ratio * num_layers) <= 0.5
    if k > len(valid):
        with pytest.raises(ValueError, match=f"{k} layers cannot be skipped where only {len(valid)} may be"):
            draw_skipped_layers(valid, k, seed, step)
    else:
        layers = draw_skipped_layers(valid, k, seed, step)
        assert len(set(layers)) == k and set(layers) <= set(valid) and layers == sorted(layers)


def draw_on_a_rank(rank, port, queue):
    """Draw draws and nest a model wrapped for data-parallel training, with the random state that TRL gives a rank."""
    import torch.distributed as dist
    from transformers import Qwen2Config, Qwen2ForCausalLM

    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=97, num_hidden_layers=6, **sizes)).eval()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    random.seed(rank)
    torch.manual_seed(rank)  # ranks differ in their global state
    draws = [draw_skipped_layers(valid_layers(6, 1), 2, 0, step) for step in range(50)]
    gathered = [None, None]
    dist.all_gather_object(gathered, draws)
    with torch.no_grad(), nested(wrapped, draws[0]):
        logits = wrapped(torch.arange(3, 13).unsqueeze(0)).logits
    queue.put((rank, gathered, logits.sum().item(), random.random(), torch.rand(1).item()))
    dist.destroy_process_group()


def test_ranks_draw_the_same_layers_whatever_their_random_state():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=draw_on_a_rank, args=(rank, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    zero, one = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(timeout=30)
    assert zero[1] == one[1] and zero[1][0] == zero[1][1]
    assert zero[2] == one[2]  # the same layers were skipped
    for rank, drawn in enumerate((zero, one)):  # nobody drew from the global generators
        torch.manual_seed(rank)
        assert drawn[3:] == (random.Random(rank).random(), torch.rand(1).item())
