"""Adapters: the modules that get one, and targets that are refused."""

import pytest
from peft import get_peft_model
from transformers import AutoConfig

from nested_reft.config.sections import Lora
from nested_reft.errors import UserError
from nested_reft.model.loading import load_model
from nested_reft.model.lora import adapter_for, describe_adapter
from tests.conftest import TINY

ENDS = "down_proj, gate_proj, up_proj, k_proj, o_proj, q_proj, v_proj"


@pytest.mark.parametrize(
    ("targets", "modules"), [("all-linear", 7 * 28), (["q_proj", "v_proj"], 2 * 28), ("self_attn.o_proj", 28)]
)
def test_the_size_is_that_of_the_adapter_that_peft_adds(targets, modules):
    settings = Lora(r=4, target_modules=targets)
    model, _ = load_model(TINY, "float32")
    adapter = describe_adapter(model.config, settings, "sft.lora")
    assert adapter.num_modules == modules
    adapted = get_peft_model(model, adapter_for(model, settings, "sft.lora"))
    assert adapter.num_parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize("target", ["c_attn", "proj", "mlp", "layers", "input_layernorm", "lm_head", "embed_tokens"])
def test_a_target_that_names_no_linear_layer_of_the_decoder_is_one_sentence(target):
    settings = Lora(target_modules=["q_proj", target])
    with pytest.raises(UserError) as refusal:
        describe_adapter(AutoConfig.from_pretrained(TINY), settings, "training.lora")
    assert str(refusal.value) == (
        f"training.lora.target_modules has {target!r}, which names no linear layer of the decoder of "
        f"Qwen2ForCausalLM; choose all-linear, or some of {ENDS}"
    )
