"""The roll-out engine: the same function as `generate`, whatever the mask and however the batch is split."""

import numpy as np
import pytest
import torch
from scipy import stats

from nested_reft.model.layers import nested
from nested_reft.nesting import draw_skipped_layers
from nested_reft.rollout.cuda_graphs import Graphs
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.sampler import engine_for
from nested_reft.rollout.sampling import Sampling, draw, philox_uniforms
from nested_reft.rollout.self_check import unsupported_reason
from tests.model.test_families import FAMILIES, PROMPTS, build, valid

GREEDY = Sampling(max_new_tokens=12, temperature=0.0, eos_token_ids=(2, 3))
COVERED = [family for family in FAMILIES if family != "bloom"]
# Experts are chosen by the data, and the sinks of gpt_oss are unknown to the attention of compiled layers.
COMPILED = [family for family in COVERED if family not in ("qwen3_moe", "mixtral", "gpt_oss")]


@torch.no_grad()
def by_generate(model, skipped):
    """Return greedy completions by `generate` from a left-padded batch, each up to its first end token."""
    width = max(map(len, PROMPTS))
    rows = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    with nested(model, skipped):
        output = model.generate(
            input_ids=rows,
            attention_mask=(rows > 0).long(),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=[2, 3],
        )
    ends = [[index for index, token in enumerate(row) if token in (2, 3)] for row in output[:, width:].tolist()]
    return [row[: end[0] + 1] if end else row for row, end in zip(output[:, width:].tolist(), ends, strict=True)]


@torch.no_grad()
def scored(model, skipped, completions):
    """Return the log-probs of completions by one forward each, without any cache."""
    logps = []
    with nested(model, skipped):
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
            tokens = torch.tensor(completion).unsqueeze(1)
            logps.append(logits.float().log_softmax(dim=-1).gather(1, tokens).squeeze(1).tolist())
    return logps


def check_against_generate(model, compiled):
    """Greedy tokens are those of `generate`, log-probs those of a scoring forward, whatever the mask."""
    engine, allowed = RolloutEngine(model, compiled), valid(model)
    assert unsupported_reason(engine, PROMPTS, GREEDY) is None
    for skipped in ([], allowed[:1], draw_skipped_layers(allowed, 2, seed=0, step=0), allowed):
        completions, logps = engine.sample(PROMPTS, GREEDY, seed=0, skipped=skipped)
        assert completions == by_generate(model, skipped), skipped
        for mine, theirs in zip(logps, scored(model, skipped, completions), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
    return engine


@pytest.mark.parametrize("family", COVERED)
def test_greedy_tokens_are_those_of_generate_and_log_probs_those_of_a_scoring_forward(family):
    model = build(family)
    check_against_generate(model, compiled=False)
    for skipped in ([], valid(model)[:1]):
        two_rows = RolloutEngine(model).sample(PROMPTS, GREEDY, seed=0, skipped=skipped, num_rows=2)[0]
        assert two_rows == by_generate(model, skipped), "a place that is taken over forgets who had it"


@pytest.mark.parametrize("family", ["qwen2", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_compiled_layers_are_the_same_function_and_no_mask_compiles_anything(family):
    engine = check_against_generate(build(family), compiled=True)
    assert len(engine.pieces.steps) == {"qwen2": 1, "gemma2": 2}[family]  # gemma2 has layers of two builds
    assert not any("forward" in vars(layer) for layer in engine.pieces.layers)
    for step, _ in engine.pieces.steps.values():
        attention, mlp = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
        assert step.joined == [[*attention], [*mlp]], "one matrix product of what reads the same"


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPILED)
def test_compiled_layers_are_the_same_function_for_every_family(family):
    check_against_generate(build(family), compiled=True)


@pytest.mark.slow
def test_longer_prompts_get_larger_buffers_and_the_same_completions(small_model):
    """Buffers grow by half at least, so that a run whose prompts vary compiles a few times at most."""
    engine, eager = RolloutEngine(small_model, compiled=True), RolloutEngine(small_model)
    sizes = []
    for length in (3, 20, 24, 40):
        prompts = [[5 + token % 7 for token in range(length)]] * 2
        (mine, logps), (theirs, of_eager) = engine.sample(prompts, GREEDY, 0), eager.sample(prompts, GREEDY, 0)
        assert mine == theirs and logps[0] == pytest.approx(of_eager[0], abs=1e-5)
        sizes.append(engine.place.num_columns)
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_what_graphs_read_is_copied_once_to_an_address_that_stays():
    graphs = Graphs()
    first, second = torch.ones(2), torch.full((2,), 2.0)
    kept = graphs.keep(("mask",), first)
    assert kept is not first and torch.equal(kept, first)
    kept.zero_()
    assert graphs.keep(("mask",), first) is kept and kept.sum() == 0, "the same source is not copied again"
    assert graphs.keep(("mask",), second) is kept and torch.equal(kept, second)
    assert graphs.keep(("mask",), torch.ones(3)) is not kept


def test_compiled_layers_see_the_weights_of_now(small_model):
    """A compiler that took weights for constants would go on with those of the first step."""
    engine = RolloutEngine(small_model, compiled=True)
    before = engine.sample(PROMPTS, GREEDY, seed=0)
    with torch.no_grad():
        for layer in engine.pieces.layers:
            layer.mlp.down_proj.weight.mul_(-2)
            layer.mlp.up_proj.weight.mul_(3)  # joined with another one, so copied
    completions, logps = engine.sample(PROMPTS, GREEDY, seed=0)
    assert completions == by_generate(small_model, []) != before[0]
    assert logps[0] == pytest.approx(scored(small_model, [], completions)[0], abs=1e-5)


@pytest.mark.parametrize("engine-compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_samples_of_a_model_have_its_distribution(compiled, small_model):
    """Chi-square over the vocabulary: 20,000 rows of one prompt, read once."""
    num_rows = 20_000
    sampling = Sampling(max_new_tokens=1, temperature=0.8)
    engine = RolloutEngine(small_model, compiled)
    completions, _ = engine.sample([PROMPTS[0]] * num_rows, sampling, seed=3, skipped=[2], num_rows=500)
    with torch.no_grad(), nested(small_model, [2]):
        logits = small_model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = num_rows * torch.softmax(logits / 0.8, dim=-1).double().numpy()
    counts = np.bincount([tokens[0] for tokens in completions], minlength=len(expected))
    common = expected > 5  # what is rarer is one bin
    observed = [*counts[common], counts[~common].sum()]
    wanted = np.array([*expected[common], expected[~common].sum()])
    assert stats.chisquare(observed, wanted * num_rows / wanted.sum()).pvalue > 1e-3
    tilted = wanted * np.linspace(0.9, 1.1, len(wanted))
    assert stats.chisquare(observed, tilted * num_rows / tilted.sum()).pvalue < 1e-3, "the test has power"


def test_a_copy_in_another_type_follows_the_weights(small_model):
    engine = RolloutEngine(small_model, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.bfloat16}
    assert small_model.dtype == torch.float32
    _, logps = engine.sample(PROMPTS, GREEDY, seed=0)
    with torch.no_grad():
        small_model.lm_head.weight.mul_(3)
    completions, renewed = engine.sample(PROMPTS, GREEDY, seed=0)
    assert renewed != logps
    whole = torch.tensor([logp for row in scored(small_model, [], completions) for logp in row])
    error = (torch.tensor([logp for row in renewed for logp in row]) - whole).abs()
    assert 0 < error.mean() < 0.05


@pytest.mark.parametrize(("family", "kind"), [("gpt_oss", "engine"), ("bloom", "generate")])
def test_where_a_model_is_not_covered_a_plainer_sampler_is_taken_and_the_log_says_why(family, kind, caplog):
    model = build(family)
    engine = engine_for(model, "engine-compiled", PROMPTS, GREEDY)
    assert (engine is None) == (kind == "generate") and (engine is None or not engine.compiled)
    tried = "engine-compiled" if kind == "engine" else "engine"
    assert caplog.messages[-1].startswith(f"sampler {tried} cannot be used, {kind} is instead: {type(model).__name__}")


def test_what_it_does_not_cover_is_said():
    assert unsupported_reason(RolloutEngine(build("bloom")), PROMPTS, GREEDY).startswith(
        "BloomForCausalLM does not run over it"
    )


@pytest.mark.parametrize("wrong", [0.0, torch.nan])
def test_a_wrong_mask_would_be_noticed(wrong, monkeypatch):
    """`unsupported_reason` can fail: here attention sees one column too many, or only NaN."""
    monkeypatch.setattr(RolloutEngine, "masks", lambda self, place: torch.full((1, 1, 1, place.end), wrong))
    engine = RolloutEngine(build("llama"))
    assert unsupported_reason(engine, PROMPTS, GREEDY) == "LlamaForCausalLM gives other log-probabilities over it"


def test_completions_depend_on_seed_step_and_row_and_not_on_the_batch(small_model):
    engine = RolloutEngine(small_model)
    sampling = Sampling(max_new_tokens=10, eos_token_ids=(2,))
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    whole = engine.sample(prompts, sampling, seed=1, step=7)[0]
    assert engine.sample(prompts, sampling, seed=1, step=7, num_rows=5)[0] == whole
    assert RolloutEngine(small_model).sample(prompts, sampling, seed=1, step=7, num_rows=1)[0] == whole
    assert engine.sample(prompts, sampling, seed=1, step=8)[0] != whole
    assert engine.sample(prompts, sampling, seed=2, step=7)[0] != whole
    assert len({tuple(row) for row in whole[:3]}) > 1  # rows of one prompt differ
    before = torch.get_rng_state()
    engine.sample(prompts, sampling, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shared_prompt_is_read_once(small_model):
    engine, read = RolloutEngine(small_model), []
    hook = small_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine.sample([PROMPTS[0]] * 6 + [PROMPTS[2]] * 2, Sampling(max_new_tokens=3, fixed_length=True), seed=0)
    hook.remove()
    assert read == [(2, len(PROMPTS[0]) - 1), (8, 1), (8, 1), (8, 1)]  # two prompts, then a token of eight rows


def test_memory_is_allocated_once_and_not_for_a_layer_that_never_ran(small_model):
    engine, sampling = RolloutEngine(small_model), Sampling(max_new_tokens=5, fixed_length=True)
    engine.sample(PROMPTS, sampling, seed=0, skipped=[2])
    assert [layer.is_initialized for layer in engine.cache.layers].count(False) == 1
    address = engine.cache.layers[0].keys.data_ptr()
    engine.sample(PROMPTS, sampling, seed=0, step=1, skipped=[2])
    assert engine.cache.layers[0].keys.data_ptr() == address


def test_tokens_are_drawn_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, -torch.inf]).expand(20_000, -1)
    draws = torch.from_numpy(np.stack([philox_uniforms(0, 0, row, 1)[0] for row in range(20_000)]))
    tokens, logps = draw(logits, draws, Sampling(max_new_tokens=1, temperature=1.5))
    probs = torch.softmax(logits[0] / 1.5, dim=-1)
    counts = torch.bincount(tokens, minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4].numpy(), probs[:4].double().numpy() * 20_000).pvalue > 1e-3
    assert torch.allclose(logps, probs.log()[tokens])
    biased = probs[:4].double().numpy() * 20_000 * np.array([1.1, 1, 1, 1])
    assert stats.chisquare(counts[:4].numpy(), biased / biased.sum() * 20_000).pvalue < 1e-3  # it can fail


def test_a_banned_end_token_is_not_drawn_but_remembered_as_possible():
    logits = torch.tensor([[5.0, 0.0, 0.0]]).expand(500, -1)
    draws = torch.linspace(0, 1 - 1e-9, 500, dtype=torch.float64)
    tokens, logps = draw(logits, draws, Sampling(max_new_tokens=1, fixed_length=True, eos_token_ids=(0,)))
    assert set(tokens.tolist()) == {1, 2}
    assert torch.allclose(logps, torch.log_softmax(logits[0], dim=-1)[1].expand(500))
    nucleus, _ = draw(logits, draws, Sampling(max_new_tokens=1, top_p=0.9))
    assert set(nucleus.tolist()) == {0}
