"""Compiled layers compute the same function, and a new set of skipped layers compiles nothing."""

import pytest
import torch

from nested_reft.rollout.engine import RolloutEngine
from tests.model.families import PROMPTS, build
from tests.rollout.reference import GREEDY, SUPPORTED, check_against_generate, greedy_by_generate, scored_logps

# The data choose the experts of a layer, and the compiled layers' attention does not support the sinks of gpt_oss.
COMPILED = [family for family in SUPPORTED if family not in ("qwen3_moe", "mixtral", "gpt_oss")]


@pytest.mark.parametrize("family", ["qwen2", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_compiled_layers_are_the_same_function_and_skipping_compiles_nothing(family):
    engine = check_against_generate(build(family), compiled=True)
    assert len(engine.compiled_layers.steps) == {"qwen2": 1, "gemma2": 2}[family]  # gemma2 has two types of layers
    assert not any("forward" in vars(layer) for layer in engine.compiled_layers.layers)
    for step, _ in engine.compiled_layers.steps.values():
        attention, mlp = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
        assert step.fused == [[*attention], [*mlp]], "linears with the same input are one matmul"


@pytest.mark.slow
@pytest.mark.nightly  # the test above compiles two families
@pytest.mark.parametrize("family", COMPILED)
def test_compiled_layers_are_the_same_function_for_every_family(family):
    check_against_generate(build(family), compiled=True)


@pytest.mark.slow
def test_longer_prompts_get_larger_buffers_and_the_same_completions(small_model):
    """Buffers grow by at least half, so that a run whose prompts vary compiles only a few times."""
    engine, plain = RolloutEngine(small_model, compiled=True), RolloutEngine(small_model)
    sizes = []
    for length in (3, 20, 24, 40):
        prompts = [[5 + token % 7 for token in range(length)]] * 2
        completions, logps = engine.sample(prompts, GREEDY, 0)
        plain_completions, plain_logps = plain.sample(prompts, GREEDY, 0)
        assert completions == plain_completions and logps[0] == pytest.approx(plain_logps[0], abs=1e-5)
        sizes.append(engine.positions.num_columns)
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_compiled_layers_use_the_current_weights(small_model):
    """A compiler that made weights constants would keep using those of the first step."""
    engine = RolloutEngine(small_model, compiled=True)
    before = engine.sample(PROMPTS, GREEDY, seed=0)
    with torch.no_grad():
        for layer in engine.compiled_layers.layers:
            layer.mlp.down_proj.weight.mul_(-2)
            layer.mlp.up_proj.weight.mul_(3)  # fused with another linear, so its weights are copied
    completions, logps = engine.sample(PROMPTS, GREEDY, seed=0)
    assert completions == greedy_by_generate(small_model, []) != before[0]
    assert logps[0] == pytest.approx(scored_logps(small_model, [], completions)[0], abs=1e-5)
