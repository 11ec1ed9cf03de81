"""The arithmetic of a shape agrees with models that transformers builds, and with counts by hand."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nested_reft.config.sections import PACKAGE
from nested_reft.model.shape import HUB_SHAPES, ModelShape, read_shape
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.token_sampling import SamplingParams

SMALL = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 97}
TINY = json.loads((PACKAGE / "embedded/tiny-28/config.json").read_text())
# Two layers of width 4, two heads of size 2 with one of keys and values, an MLP of width 6, 10 tokens.
BY_HAND = ModelShape(2, 4, 6, 2, 1, 2, 10, tied=False, qkv_bias=True, output_bias=False, qk_norm=False)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        HUB_SHAPES["Qwen/Qwen2.5-Math-1.5B-Instruct"],
        HUB_SHAPES["Qwen/Qwen2.5-Math-7B-Instruct"],
        {"model_type": "qwen3", **SMALL},
        {"model_type": "llama", **SMALL},
        {"model_type": "llama", **SMALL, "attention_bias": True, "tie_word_embeddings": True},
        {"model_type": "mistral", **SMALL, "num_key_value_heads": 4},
        {"model_type": "smollm3", **SMALL, "tie_word_embeddings": True, "pad_token_id": 0},
    ],
    ids=lambda config: f"{config['model_type']}-{config['hidden_size']}",
)
def test_parameters_are_those_of_the_model(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert read_shape(config).parameters == model.num_parameters()


def test_a_mixture_of_experts_has_no_shape():
    assert read_shape({**SMALL, "num_experts": 8}) is None
    assert read_shape({"hidden_size": 8}) is None


def test_flops_equal_a_count_by_hand():
    # q 4x4, k and v 4x2, o 4x4, gate and up 4x6, down 6x4: 48 + 72 multiplications and additions
    assert BY_HAND.matrix_parameters == 120
    assert BY_HAND.layer_flops(attended=0) == 240
    # three attended tokens: scores and weighted values, 4 wide, a multiplication and an addition each
    assert BY_HAND.layer_flops(attended=3) == 240 + 2 * 2 * 4 * 3
    # 10 tokens through two layers, each attending to 3 of 6 on average, and 4 of them scored on 10 tokens
    assert BY_HAND.forward_flops(tokens=10, length=6, scored=4) == 10 * 2 * 288 + 4 * 2 * 4 * 10


def test_lora_parameters_equal_those_of_peft():
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY))
    for targets in (["all-linear"], ["q_proj", "down_proj"]):
        names = targets if len(targets) > 1 else targets[0]
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        assert read_shape(TINY).lora_parameters(4, targets) == trained
        model = adapted.unload()


def test_kv_bytes_are_those_of_the_buffers_of_the_engine(small_model):
    engine = RolloutEngine(small_model)
    prompts = [[5, 6, 7], [8, 9]] * 2
    engine.sample(prompts, SamplingParams(8, fixed_length=True, eos_token_ids=(2,)), seed=0)
    buffers = [tensor for layer in engine.cache.layers for tensor in (layer.keys, layer.values)]
    shape = read_shape(small_model.config.to_dict())
    columns = engine.positions.num_columns
    assert sum(tensor.nbytes for tensor in buffers) == shape.kv_bytes(len(prompts), columns, "float32")
