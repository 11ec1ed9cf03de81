"""A nested model equals the smaller model of its other layers, in names, shapes and logits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nested_reft.errors import NestingError
from nested_reft.model.layers import nested
from nested_reft.model.renumber import check_equal_shapes, renumbered_weights, smaller_config
from nested_reft.nesting import draw_skipped_layers
from tests.model.families import PROMPTS, build, valid

FAMILIES = ["qwen2", "qwen3", "llama", "mistral"]


@torch.no_grad()
def logits_of(model):
    return model(torch.tensor([PROMPTS[0]])).logits


def smaller_model(model, skipped):
    """Return the model that is left when layers are skipped, with its own modules; every weight has its place."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    smaller = AutoModelForCausalLM.from_config(smaller_config(inner.config, len(skipped))).eval()
    weights = dict(renumbered_weights(model, skipped))
    missing, unexpected = smaller.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if inner.config.tie_word_embeddings else set()
    assert set(missing) == tied and not unexpected
    return smaller


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_smaller_model_has_the_logits_of_the_nested_model(family, tied):
    model = build(family, tie_word_embeddings=tied)
    for step, count in enumerate((0, 1, 2, 3)):
        skipped = draw_skipped_layers(valid(model), count, seed=0, step=step)
        smaller = smaller_model(model, skipped)
        assert smaller.config.num_hidden_layers == len(smaller.model.layers) == 6 - count
        with nested(model, skipped):
            torch.testing.assert_close(logits_of(smaller), logits_of(model))


def test_another_set_of_layers_gives_another_model():
    model = build("qwen2")
    with nested(model, [2]):
        assert (logits_of(smaller_model(model, [3])) - logits_of(model)).abs().max() > 0.1


def test_weights_are_not_copied_and_shared_ones_come_once():
    model = build("llama", tie_word_embeddings=True)
    weights = dict(renumbered_weights(model, [1]))
    layers = model.model.layers
    assert weights["model.layers.1.mlp.up_proj.weight"].data_ptr() == layers[2].mlp.up_proj.weight.data_ptr()
    assert "lm_head.weight" not in weights and not any(weight.requires_grad for weight in weights.values())


def test_lora_adapters_are_merged_and_the_model_keeps_them():
    torch.manual_seed(1)
    adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(build("qwen2"), adapter).eval()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    smaller = smaller_model(model, [2, 4])
    with nested(model, [2, 4]):
        torch.testing.assert_close(logits_of(smaller), logits_of(model))
        with model.disable_adapter():
            assert (logits_of(smaller) - logits_of(model)).abs().max() > 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(("family", "types"), [("gemma2", "sliding_attention, full_attention"), ("olmo3", "sliding")])
def test_layers_of_different_types_are_refused_where_some_are_skipped(family, types):
    config = build(family).config
    assert smaller_config(config, 0).layer_types == config.layer_types
    with pytest.raises(
        NestingError, match=rf"layers of a {family} model have different layer_types \({types}.*engine$"
    ):
        smaller_config(config, 1)


def test_layers_with_different_weights_are_refused():
    model = build("qwen2")
    check_equal_shapes(model)
    model.model.layers[3].mlp.up_proj = torch.nn.Linear(32, 65, bias=False)
    with pytest.raises(NestingError, match=r"layers 0 and 3 of Qwen2ForCausalLM have different weights"):
        check_equal_shapes(model)
