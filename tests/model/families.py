"""Small random models of the families of decoder-only models that transformers ships."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from nested_reft.nesting import valid_layers

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

# The families whose log-probs are tested; any other with a plain stack of layers is nested in the same way.
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
    """Return the layers of the model that may be skipped."""
    config = model.config
    return valid_layers(config.num_hidden_layers, border, getattr(config, "layer_types", None))
