"""Models that are refused because their nested roll-outs would be silently wrong; test_families.py has the others."""

import pytest
from trl.trainer.utils import disable_dropout_in_model

from nested_reft.errors import NestingError
from nested_reft.model.checks import check_nestable
from nested_reft.model.loading import load_model
from tests.conftest import SMOLLM2, needs_smollm2
from tests.model.families import build


@pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode"])
def test_absolute_positions_are_refused(family):
    model = build(family, n_layer=6, n_head=4, n_embd=32, n_positions=128)
    disable_dropout_in_model(model)  # as the trainer does
    with pytest.raises(NestingError, match="reads absolute positions, which left padding shifts"):
        check_nestable(model)


@needs_smollm2
def test_rounding_of_a_pretrained_model_in_bfloat16_is_not_taken_for_absolute_positions():
    model, _ = load_model(SMOLLM2, "bfloat16")
    check_nestable(model)


def test_layers_that_share_keys_and_values_are_refused():
    types = ["sliding_attention", "full_attention"] * 3
    sharing = {"num_kv_shared_layers": 2, "layer_types": types, "sliding_window": 4}
    model = build("gemma4_text", vocab_size_per_layer_input=160, **sharing)
    with pytest.raises(NestingError, match="Gemma4ForCausalLM shares keys and values between layers"):
        check_nestable(model)


def test_dropout_that_trl_cannot_turn_off_is_refused():
    """TRL zeroes Dropout modules; these are arguments of functions."""
    for family, key in (("llama", "attention_dropout"), ("opt", "dropout")):
        model = build(family, **{key: 0.5})
        disable_dropout_in_model(model)
        with pytest.raises(NestingError, match="drops units at random in training"):
            check_nestable(model)


def test_a_model_without_a_plain_stack_is_refused():
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=32))
    model.config.num_hidden_layers = 3
    with pytest.raises(NestingError, match="no plain stack of 3 decoder layers; it cannot be nested"):
        check_nestable(model)
