"""The costs of a job agree with counts by hand and with what PyTorch keeps."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from nested_reft.config.sections import PACKAGE, Evaluation, Sft, Training
from nested_reft.model.shape import HUB_SHAPES, read_shape
from nested_reft.plan.cards import CARDS, GIB
from nested_reft.plan.costs import (
    Layout,
    Lengths,
    decode_seconds,
    evaluate_cost,
    kv_columns,
    layer_activation_bytes,
    sft_cost,
    train_cost,
    update_memory,
)

TINY = json.loads((PACKAGE / "embedded/tiny-28/config.json").read_text())
SEVEN_B = read_shape(HUB_SHAPES["Qwen/Qwen2.5-Math-7B-Instruct"])
SMALL = read_shape(HUB_SHAPES["Qwen/Qwen2.5-Math-1.5B-Instruct"])
PLAIN = {"bf16": False, "gradient_checkpointing": False}
PROMPT = Lengths(80, 120, 200)
H100, CPU = CARDS["h100"], CARDS["cpu"]


def kept_by_a_layer(sizes: dict, settings: Sft, batch: int = 4, length: int = 48) -> float:
    """Return the bytes per token that one more layer keeps for the backward pass, without casts of weights."""

    def kept(num_layers: int) -> int:
        config = AutoConfig.for_model(**TINY | sizes | {"num_hidden_layers": num_layers, "layer_types": None})
        model = AutoModelForCausalLM.from_config(config).to(getattr(torch, settings.dtype))
        if settings.lora:
            lora = LoraConfig(r=settings.lora.r, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
        tensors: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        ids = torch.randint(3, 400, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, :5] = 0  # as in a batch with padding
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        weights = {tuple(weight.shape) for weight in model.parameters()}
        weights |= {size[::-1] for size in weights}
        places = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept = [tensor for place, tensor in tensors.items() if place not in places]
        return sum(tensor.untyped_storage().nbytes() for tensor in kept if tuple(tensor.shape) not in weights)

    return (kept(3) - kept(2)) / (batch * length)


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 96, "intermediate_size": 288, "num_key_value_heads": 4}])
@pytest.mark.parametrize(
    "changes",
    [{}, {"bf16": True}, {"dtype": "bfloat16"}, {"lora": {"r": 4}}, {"lora": {"r": 4}, "bf16": True}],
    ids=str,
)
def test_activations_are_those_that_autograd_keeps(sizes, changes):
    settings = Sft(**PLAIN | changes)
    planned = layer_activation_bytes(read_shape(TINY | sizes), settings)
    assert planned == pytest.approx(kept_by_a_layer(sizes, settings), rel=0.06)


def test_state_of_a_full_training_is_sixteen_bytes_per_parameter():
    memory = update_memory(SEVEN_B, Training(), 400, 256, H100)["update"]
    assert memory.weights + memory.gradients + memory.optimizer == 16 * SEVEN_B.parameters
    half = update_memory(SEVEN_B, Training(dtype="bfloat16"), 400, 256, H100)["update"]
    assert half.weights + half.gradients + half.optimizer == 8 * SEVEN_B.parameters


def test_fsdp_divides_the_state():
    one, four = (
        update_memory(SEVEN_B, Training(), 400, 256, H100, Layout(number, sharded=True))["update"] for number in (1, 4)
    )
    assert four.optimizer == one.optimizer / 4
    assert four.gradients == one.gradients / 4
    assert four.activations == one.activations


def test_a_sharded_training_keeps_a_whole_copy_to_sample_from():
    full, half = (
        train_cost(SEVEN_B, Training(sampling_dtype=dtype), PROMPT, 0, H100, Layout(4, sharded=True)).memory
        for dtype in (None, "bfloat16")
    )
    for phase in full:
        assert full[phase].weights - half[phase].weights == 2 * SEVEN_B.parameters


def test_checkpointing_keeps_less():
    without, with_it = (
        update_memory(SMALL, Training(gradient_checkpointing=wanted), 400, 256, H100)["update"].activations
        for wanted in (False, True)
    )
    assert with_it < without / 5


def test_kv_columns_of_the_engine():
    """200 prompt tokens and 256 new ones fill 8 blocks of 64; one block more is kept."""
    assert kv_columns(Lengths(200, 200, 200), 256, H100, grows=True) == 9 * 64
    assert kv_columns(Lengths(200, 200, 200), 256, CPU, grows=True) == 30 * 16
    # buffers for 120 + 256 columns grow by half when a longer prompt comes
    assert kv_columns(PROMPT, 256, H100, grows=True) == (9 + 1) * 64
    assert kv_columns(PROMPT, 256, H100, grows=False) == (8 + 1) * 64


def test_a_decode_step_is_bound_by_starts_or_by_its_work():
    few = decode_seconds(SMALL, H100, 1, 300, "bfloat16", "engine")
    assert few == decode_seconds(SMALL, H100, 2, 300, "bfloat16", "engine")  # starting operations takes the time
    compiled = decode_seconds(SMALL, H100, 1, 300, "bfloat16", "engine-compiled")
    assert compiled < few
    skipped = decode_seconds(SMALL, H100, 128, 300, "float32", "engine", num_skipped=14)
    assert skipped < 0.62 * decode_seconds(SMALL, H100, 128, 300, "float32", "engine")


def test_steps_tokens_and_flops_of_a_warm_up():
    settings = Sft(num_train_epochs=2, batch_size=16, per_device_train_batch_size=8, bf16=False)
    text = Lengths(100, 100, 100)
    cost = sft_cost(SMALL, settings, 33, text, 60, CPU)
    steps = 2 * 3  # 33 rows are three batches of 16
    assert cost.tokens == steps * 16 * 100
    body = SMALL.forward_flops(cost.tokens, 100, 0)
    # forward, recomputed, and twice backward; the output projection is computed twice forward and twice backward
    assert cost.flops == pytest.approx(4 * body + 4 * cost.tokens * SMALL.lm_head_flops)


def test_two_passes_over_a_batch_score_it_and_sample_it_once():
    once = train_cost(SMALL, Training(max_steps=10), PROMPT, 3, H100)
    twice = train_cost(SMALL, Training(max_steps=10, num_iterations=2), PROMPT, 3, H100)
    assert twice.seconds["generate"] == pytest.approx(once.seconds["generate"] / 2)
    assert twice.seconds["score"] > once.seconds["score"] / 2
    assert twice.seconds["update"] == once.seconds["update"]


def test_a_share_of_the_whole_model_is_sampled_by_it_and_scored_by_the_nested_model():
    settings = Training(max_steps=10)
    nested, half, whole = (
        train_cost(SMALL, settings, PROMPT, skipped, H100, whole_share=share)
        for skipped, share in ((3, 0.0), (3, 0.5), (0, 0.5))
    )
    assert whole == train_cost(SMALL, settings, PROMPT, 0, H100)  # a roll-out without skipped layers ignores the share
    # Reading the weights takes most of a decode step, so that a batch of half the size takes nearly as long.
    assert half.seconds["generate"] == pytest.approx(nested.seconds["generate"] + whole.seconds["generate"], rel=0.1)
    sampled = settings.max_steps * settings.prompts_per_step * settings.num_generations
    length, scored = PROMPT.mean + settings.max_completion_length, sampled / 2
    forward = SMALL.forward_flops(scored * length, length, scored * settings.max_completion_length)
    forward *= (SMALL.num_layers - 3) / SMALL.num_layers
    assert half.flops == pytest.approx((nested.flops + whole.flops) / 2 + forward)


def test_an_evaluation_keeps_the_longest_completions():
    short, long = (
        evaluate_cost(SMALL, Evaluation(max_new_tokens=tokens), 1000, PROMPT, 500, H100) for tokens in (500, 3000)
    )
    assert long.peak.kv_cache > 4 * short.peak.kv_cache
    assert long.tokens == short.tokens == 1000 * (80 + 500)
    assert short.peak.weights == 2 * SMALL.parameters
    assert short.peak.total < 20 * GIB
