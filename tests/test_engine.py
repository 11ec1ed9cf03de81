"""The roll-out engine: the same function as `generate`, whatever the mask and however the batch is split."""

import numpy as np
import pytest
import torch
from scipy import stats

from nested_reft.engine import RolloutEngine, Sampling, draw, uniforms, why_not
from nested_reft.nesting import draw_mask, nested

from .test_families import FAMILIES, PROMPTS, build, valid

GREEDY = Sampling(max_new_tokens=12, temperature=0.0, eos_token_ids=(2, 3))
COVERED = [family for family in FAMILIES if family != "bloom"]


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


@pytest.mark.parametrize("family", COVERED)
def test_greedy_tokens_are_those_of_generate_and_log_probs_those_of_a_scoring_forward(family):
    model = build(family)
    engine, allowed = RolloutEngine(model), valid(model)
    assert why_not(engine, PROMPTS, GREEDY) is None
    for skipped in ([], allowed[:1], draw_mask(allowed, 2, seed=0, step=0), allowed):
        completions, logps = engine.sample(PROMPTS, GREEDY, seed=0, skipped=skipped)
        assert completions == by_generate(model, skipped), skipped
        for mine, theirs in zip(logps, scored(model, skipped, completions), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
        two_rows = engine.sample(PROMPTS, GREEDY, seed=0, skipped=skipped, num_rows=2)[0]
        assert two_rows == completions, "a place that is taken over forgets who had it"


def test_what_it_does_not_cover_is_said():
    assert why_not(RolloutEngine(build("bloom")), PROMPTS, GREEDY).startswith("BloomForCausalLM does not run over it")


def test_a_wrong_mask_would_be_noticed(monkeypatch):
    """The proof that `why_not` can fail: attention to one column too many."""
    monkeypatch.setattr(RolloutEngine, "masks", lambda self, place: torch.zeros(1, 1, 1, place.end))
    engine = RolloutEngine(build("llama"))
    assert why_not(engine, PROMPTS, GREEDY) == "LlamaForCausalLM gives other log-probabilities over it"


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
    draws = torch.from_numpy(np.stack([uniforms(0, 0, row, 1)[0] for row in range(20_000)]))
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
