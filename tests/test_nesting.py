"""Which layers are skipped, and that nothing else changes."""

import copy
import random

import numpy as np
import pytest
import torch
from scipy import stats

from nested_reft.nesting import decoder_layers, draw_mask, nested, num_skipped, valid_layers


def test_table_1_of_the_paper():
    assert [num_skipped(28, ratio) for ratio in (0.05, 0.10, 0.15)] == [1, 3, 4]


def test_valid_layers_leave_out_borders_and_the_first_of_each_attention_type():
    assert valid_layers(6, 1) == [1, 2, 3, 4]
    assert valid_layers(6, 2) == [2, 3]
    assert valid_layers(6, 1, ["full", "sliding", "full", "sliding", "full", "full"]) == [2, 3, 4]
    assert valid_layers(2, 1) == []


def test_masks_are_a_pure_function_of_seed_and_step():
    valid = valid_layers(28, 1)
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    masks = [draw_mask(valid, 4, seed, step) for seed in range(3) for step in range(20)]
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert (np.random.get_state()[1] == state[2]).all()  # noqa: NPY002
    assert masks == [draw_mask(valid, 4, seed, step) for seed in range(3) for step in range(20)]
    assert len({tuple(mask) for mask in masks}) > 55  # seeds and steps both matter
    assert draw_mask(valid, 4, 0, 0) == [1, 14, 18, 24]  # another version of Python draws the same


def test_masks_are_uniform():
    valid = valid_layers(28, 1)
    masks = [draw_mask(valid, 4, 0, step) for step in range(5000)]
    assert all(len(set(mask)) == 4 and set(mask) <= set(valid) for mask in masks)
    counts = np.bincount(np.concatenate(masks), minlength=28)[1:-1]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_more_layers_than_valid_are_refused():
    with pytest.raises(ValueError, match="only 4 may be"):
        draw_mask(valid_layers(6, 1), 5, 0, 0)


def cached_logits(model, input_ids, attention_mask):
    """Return logits token by token through the cache, as sampling sees them."""
    past, logits = None, []
    for position in range(input_ids.shape[1]):
        mask = attention_mask[:, : position + 1]
        output = model(
            input_ids=input_ids[:, position : position + 1],
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -1:],
            past_key_values=past,
            use_cache=True,
        )
        past = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def largest_error(model, skipped):
    """Return how far cached from full logits are under a mask, on the real tokens of a left-padded batch."""
    input_ids = torch.randint(3, 487, (3, 12), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :5] = attention_mask[1, :2] = 0
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    with nested(model, skipped):
        full = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).logits
        cached = cached_logits(model, input_ids, attention_mask)
    return (full - cached)[attention_mask.bool()].abs().max().item()


@pytest.mark.parametrize("skipped", [[], [1], [4], [1, 2], [2, 3, 4]])
def test_cached_sampling_agrees_with_a_full_forward_under_the_mask(small_model, skipped):
    assert largest_error(small_model, skipped) < 1e-4


def test_skipping_the_first_layer_would_be_silently_wrong(small_model):
    """The reason why layer 0 is never valid, and the proof that the test above can fail."""
    assert largest_error(small_model, [0]) > 1e-2


@torch.no_grad()
def test_a_skipped_layer_is_the_identity_and_comes_back(small_model):
    input_ids = torch.arange(3, 13).unsqueeze(0)
    before = small_model(input_ids).logits
    config = copy.deepcopy(small_model.config)
    config.num_hidden_layers, config.layer_types = 4, config.layer_types[:4]
    shallow = type(small_model)(config).eval()
    shallow.load_state_dict(small_model.state_dict(), strict=False)
    for ours, theirs in zip(shallow.model.layers, [small_model.model.layers[i] for i in (0, 1, 4, 5)], strict=True):
        ours.load_state_dict(theirs.state_dict())
    with nested(small_model, [2, 3]):
        inside = small_model(input_ids, use_cache=False).logits
    assert torch.equal(inside, shallow(input_ids, use_cache=False).logits)
    assert not torch.equal(inside, before)
    assert torch.equal(small_model(input_ids).logits, before)


def test_layers_come_back_after_an_exception(small_model):
    with pytest.raises(RuntimeError, match="midway"), nested(small_model, [1, 3]):
        raise RuntimeError("midway")
    assert all("forward" not in vars(layer) for layer in decoder_layers(small_model))


def test_a_model_without_a_plain_stack_is_refused():
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=32))
    model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="cannot be nested"):
        decoder_layers(model)
