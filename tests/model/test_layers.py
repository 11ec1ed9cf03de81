"""Layers that are skipped: they are the identity, the rest of the model is unchanged, and they come back."""

import copy

import pytest
import torch

from nested_reft.model.layers import decoder_layers, language_model, layers_return_tuples, nested, parameter_counts
from tests.model.families import build


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


def test_a_hook_that_a_layer_had_comes_back(small_model):
    """As those that a device map or offloading puts there."""
    layer, calls = small_model.model.layers[2], []
    own = layer.forward
    layer.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    ids = torch.arange(3, 13).unsqueeze(0)
    layers_return_tuples(small_model)  # runs every layer once
    calls.clear()
    with torch.no_grad():
        with nested(small_model, [2]):
            small_model(ids)
        assert calls == []
        small_model(ids)
    assert calls == [1]


def test_layers_come_back_after_an_exception(small_model):
    with pytest.raises(RuntimeError, match="midway"), nested(small_model, [1, 3]):
        raise RuntimeError("midway")
    assert all("forward" not in vars(layer) for layer in decoder_layers(small_model))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_skips_the_layers_of_each_call(small_model, in_place):
    ids, subsets = torch.arange(3, 13).unsqueeze(0), [[], [1, 3], [2, 4], [], [1, 2, 3, 4], [1, 3]]
    with torch.no_grad():
        expected = []
        for subset in subsets:
            with nested(small_model, subset):
                expected.append(small_model(ids, use_cache=False).logits)
        assert not torch.equal(expected[1], expected[2])
        compiled = torch.compile(copy.deepcopy(small_model), backend="eager")
        if in_place:
            compiled = copy.deepcopy(small_model)
            compiled.compile(backend="eager")
        for subset, logits in zip(subsets, expected, strict=True):
            with nested(compiled, subset):
                assert torch.equal(compiled(ids, use_cache=False).logits, logits), subset


@pytest.mark.parametrize(("family", "expected"), [("falcon", True), ("bloom", True), ("llama", False), ("opt", False)])
def test_what_layers_return_is_found_out_and_not_listed(family, expected):
    assert layers_return_tuples(build(family)) is expected


def test_wrappers_are_looked_through(small_model):
    from peft import LoraConfig, get_peft_model

    compiled = torch.compile(small_model, backend="eager")
    assert language_model(small_model) is language_model(compiled) is small_model
    assert language_model(get_peft_model(small_model, LoraConfig(target_modules="all-linear"))) is small_model


def test_parameter_counts(small_model):
    hidden, intermediate, keys = 32, 64, 16
    attention = (hidden * hidden + hidden) + 2 * (hidden * keys + keys) + hidden * hidden
    assert parameter_counts(small_model) == (attention + 3 * hidden * intermediate + 2 * hidden, 487 * hidden)
