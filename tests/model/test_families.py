"""Nesting every family of decoder-only models that transformers ships with a plain stack of layers.

Models of six narrow layers with random weights, in float32. What is asked of each: under a mask, the
log-probs that sampling remembers, through the cache and from a left-padded batch, are those of one
full forward scored as TRL scores it (left-padded prompt, mask, no positions).
"""

import itertools

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig
from trl.trainer.utils import disable_dropout_in_model

from nested_reft.errors import NestingError
from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import decoder_layers, layers_return_tuples, nested
from nested_reft.nesting import draw_skipped_layers, valid_layers
from nested_reft.rollout.generate import sample

WIDTHS = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}

# At least these; whatever else has a plain stack works alike (docs/algorithm.md lists what was tried).
FAMILIES = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "mistral": {"sliding_window": 4},
    "phi3": {},
    "olmo2": {},
    "smollm3": {},
    "granite": {},
    "cohere": {},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "falcon": {},
    "bloom": {"n_layer": 6, "n_head": 4},
    "gpt_oss": EXPERTS | {"sliding_window": 4},
    "olmo3": {"sliding_window": 4},
    "starcoder2": {},
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [18]]
LENGTH = 8


def build(family, **changes):
    """Return a small random model of the family, in evaluation mode."""
    torch.manual_seed(0)
    settings = WIDTHS | FAMILIES.get(family, {}) | changes
    if family == "falcon":  # derives it
        del settings["head_dim"]
    config = CONFIG_MAPPING[family](**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for module in model.modules():  # some families initialise by rules of their own: make layers matter
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    return model


def valid(model, border=1):
    config = model.config
    return valid_layers(config.num_hidden_layers, border, getattr(config, "layer_types", None))


@torch.no_grad()
def largest_error(model, skipped):
    """Return how far remembered log-probs are from those of a scoring forward, both under the mask."""
    generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=LENGTH, min_new_tokens=LENGTH, pad_token_id=0
    )
    torch.manual_seed(1)
    with nested(model, skipped):
        completions, logps = sample(model, PROMPTS, generation_config, [2])
        width = max(map(len, PROMPTS))
        rows = [[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]
        mask = torch.tensor([[int(token > 0) for token in row] + [1] * LENGTH for row in rows])
        input_ids = torch.tensor([row + completion for row, completion in zip(rows, completions, strict=True)])
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, width - 1 : -1]
    scored = torch.log_softmax(logits.float(), -1).gather(2, input_ids[:, width:].unsqueeze(2)).squeeze(2)
    return (scored - torch.tensor(logps)).abs().max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_under_a_mask_is_a_full_forward_under_that_mask(family):
    model = build(family)
    check_nestable(model)
    allowed = valid(model)
    subsets = [draw_skipped_layers(allowed, k, seed=0, step=step) for k, step in itertools.product((2, 3), range(2))]
    for skipped in [[], *([layer] for layer in allowed), *subsets, allowed]:
        assert largest_error(model, skipped) < 1e-4, f"{family} under the mask {skipped}"


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_first_layer_of_a_type_allowed_it_would_be_silently_wrong(family):
    """Why those layers are never valid, and the proof that the test above can fail."""
    model = build(family)
    types = getattr(model.config, "layer_types", None) or ["the only one"] * 6
    errors = {types.index(kind): largest_error(model, [types.index(kind)]) for kind in types}
    assert not set(errors) & set(valid(model))
    assert errors[0] > 1e-2
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))
    if family in ("gemma2", "gpt_oss"):  # alternating: the first of the second type is layer 1, inside of the border
        assert errors[1] > 1e-2


@pytest.mark.parametrize(("family", "expected"), [("falcon", True), ("bloom", True), ("llama", False), ("opt", False)])
def test_what_layers_return_is_found_out_and_not_listed(family, expected):
    assert layers_return_tuples(build(family)) is expected


@pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode"])
def test_absolute_positions_are_refused(family):
    model = build(family, n_layer=6, n_head=4, n_embd=32, n_positions=128)
    disable_dropout_in_model(model)  # as the trainer does
    with pytest.raises(NestingError, match="reads absolute positions, which left padding shifts"):
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
