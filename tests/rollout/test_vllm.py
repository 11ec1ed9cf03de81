"""Completions by vLLM: the function of the nested model, also after many changes of weights and skipped layers."""

import gc
import importlib.util
import os
import random
import sys
import time
import weakref
from statistics import median
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import GenerationConfig

from nested_reft.config.sections import Evaluation, Training
from nested_reft.errors import NestingError, UserError
from nested_reft.model.layers import nested
from nested_reft.model.loading import end_token_ids, load_model
from nested_reft.nesting import draw_skipped_layers
from nested_reft.rollout import vllm
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.sampler import Sampler
from nested_reft.rollout.self_check import completion_logps
from nested_reft.rollout.token_sampling import SamplingParams, row_seed
from nested_reft.rollout.vllm import (
    NestedVllmEngine,
    kv_bytes_per_token,
    logprobs_mode_for,
    read_end_token_ids,
    refuse_wrong_logps,
)
from nested_reft.stages.evaluate import generate_completions
from nested_reft.stages.train import train
from tests.conftest import TINY, needs_vllm
from tests.model.families import build, valid

# The sizes of heads that vLLM supports on a CPU begin at 32.
SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}
FAMILIES = {"qwen2": {}, "qwen3": {}, "llama": {}, "mistral": {"sliding_window": None}}
# Some prompts fill a block of 128 tokens, which vLLM would use again, and two of them share it.
_DRAW = np.random.default_rng(0)
LONG = _DRAW.integers(4, 160, 150).tolist()
PROMPTS = [LONG, [*LONG[:140], 5, 6], _DRAW.integers(4, 160, 9).tolist(), [18], [18]]
GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, eos_token_ids=(2, 3))
PLAIN = SamplingParams(max_new_tokens=12)
FIXED = SamplingParams(max_new_tokens=12, fixed_length=True, eos_token_ids=(2, 3))


def small(family="qwen2", **changes):
    """Return a random model with heads of a size that vLLM supports on a CPU."""
    return build(family, **SIZES, **FAMILIES[family], **changes)


def scored(model, skipped, completions, prompts=PROMPTS):
    """Return the log-probs of all tokens of completions by forwards of the nested model."""
    with nested(model, skipped):
        return completion_logps(model, prompts, completions)


def flat(logps):
    return torch.cat([torch.tensor(row) for row in logps])


def largest_error(engine, skipped, sampling=PLAIN, seed=0):
    """Return the largest absolute difference of log mu from forwards of the nested model, in nats."""
    completions, logps = engine.sample(PROMPTS, sampling, seed, 0, skipped)
    return (flat(logps) - scored(engine.source, skipped, completions)).abs().max().item()


@torch.no_grad()
def perturb(model, step):
    """Change all weights, as an optimizer step would."""
    generator = torch.Generator().manual_seed(step)
    for weight in model.parameters():
        weight += 0.02 * torch.randn(weight.shape, generator=generator)


@pytest.fixture(scope="module")
def engine():
    """Return an engine that skips two layers of a model with a tied output head."""
    return NestedVllmEngine(small(tie_word_embeddings=True), 2, PROMPTS, PLAIN)


# ---- the same function as the nested model --------------------------------------------------------


@needs_vllm
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_log_probs_are_those_of_the_nested_model(family, tied):
    """Greedy tokens for 20 sets of layers, with weights that change between pushes."""
    model = small(family, tie_word_embeddings=tied)
    by_vllm, by_engine = NestedVllmEngine(model, 2, PROMPTS, GREEDY), RolloutEngine(model)
    for step in range(20):
        perturb(model, step)
        skipped = draw_skipped_layers(valid(model), 2, seed=0, step=step)
        completions, logps = by_vllm.sample(PROMPTS, GREEDY, 0, step, skipped)
        assert completions == by_engine.sample(PROMPTS, GREEDY, 0, step, skipped)[0], skipped
        assert (flat(logps) - scored(model, skipped, completions)).abs().max() < 1e-4


@needs_vllm
def test_no_skipped_layer_and_a_bfloat16_copy_and_adapters():
    model = small(tie_word_embeddings=True)
    assert largest_error(NestedVllmEngine(model, 0, PROMPTS, PLAIN), []) < 1e-4
    rounded = NestedVllmEngine(model, 1, PROMPTS, PLAIN, torch.bfloat16)
    refuse_wrong_logps(rounded, PROMPTS, [2])
    assert 1e-3 < largest_error(rounded, [2]) < 0.5
    torch.manual_seed(1)
    adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    assert largest_error(NestedVllmEngine(get_peft_model(model, adapter), 1, PROMPTS, PLAIN), [3]) < 1e-4


def counts_and_expected(completions, probs):
    """Return observed and expected counts of first tokens; rare tokens share one bin."""
    expected = len(completions) * probs.double().numpy()
    counts = np.bincount([tokens[0] for tokens in completions], minlength=len(expected))
    common = expected > 5
    observed = np.array([*counts[common], counts[~common].sum()])
    wanted = np.array([*expected[common], expected[~common].sum()])
    return observed[wanted > 0], wanted[wanted > 0] * len(completions) / wanted.sum()


@needs_vllm
@pytest.mark.parametrize("sampling", [SamplingParams(1, 0.8), SamplingParams(1, 1.0, 1.0, True, (2, 3))])
def test_samples_have_the_distribution_of_the_nested_model(sampling):
    """Chi-square over the vocabulary of the first token, at a temperature, and with a ban on the EOS tokens."""
    model, skipped, prompts = small(vocab_size=40), [2], [[5, 6, 7]] * 4000
    completions, _ = NestedVllmEngine(model, 1, prompts[:250], sampling).sample(prompts, sampling, 3, 0, skipped)
    with torch.no_grad(), nested(model, skipped):
        logits = model(torch.tensor(prompts[:1])).logits[0, -1] / sampling.temperature
    if sampling.fixed_length:
        logits[[2, 3]] = -torch.inf
    observed, wanted = counts_and_expected(completions, logits.softmax(dim=-1))
    assert len(wanted) > 10
    assert stats.chisquare(observed, wanted).pvalue > 1e-3
    tilted = wanted * np.linspace(0.6, 1.4, len(wanted))
    assert stats.chisquare(observed, tilted * wanted.sum() / tilted.sum()).pvalue < 1e-3, "the test can fail"


@needs_vllm
def test_log_mu_is_that_of_the_softmax_without_the_ban(engine):
    """The EOS tokens have a probability that a ban would add to those of the others."""
    model, skipped = engine.source, [1, 4]
    completions, logps = engine.sample(PROMPTS, FIXED, 0, 0, skipped)
    assert {len(tokens) for tokens in completions} == {12} and not {2, 3} & set(flat(completions).tolist())
    assert (flat(logps) - scored(model, skipped, completions)).abs().max() < 1e-4
    with torch.no_grad(), nested(model, skipped):
        assert model(torch.tensor([LONG])).logits[0, -1].softmax(dim=-1)[[2, 3]].sum() > 1e-3


@needs_vllm
def test_log_mu_is_that_of_the_temperature():
    model, warm = small(), PLAIN._replace(temperature=0.7)
    engine = NestedVllmEngine(model, 1, PROMPTS, warm)
    completions, logps = engine.sample(PROMPTS, warm, 0, 0, [2])
    model.lm_head.weight.data /= 0.7
    assert (flat(logps) - scored(model, [2], completions)).abs().max() < 1e-4


@needs_vllm
def test_the_mean_ratio_under_mu_is_one(engine):
    """E_mu[r] = 1 within three standard errors, and the test would see log mu of another set of layers."""
    model, skipped = engine.source, [2, 3]
    prompts = [PROMPTS[2]] * 1000
    completions, logps = engine.sample(prompts, PLAIN._replace(max_new_tokens=4), 5, 0, skipped)
    ratios = (completion_logps(model, prompts, completions) - flat(logps)).exp().unflatten(0, (1000, 4)).mean(dim=1)
    standard_error = ratios.std() / 1000**0.5
    assert standard_error < 0.2
    assert (ratios.mean() - 1).abs() < 3 * standard_error
    assert (ratios - 1).abs().mean() > 0.1, "the two policies differ"


@needs_vllm
def test_completions_end_at_the_first_eos_token_and_depend_on_seed_step_and_row(engine):
    sampling, skipped = SamplingParams(40, eos_token_ids=tuple(range(2, 12))), [1, 3]
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    whole = engine.sample(prompts, sampling, 1, 7, skipped)[0]
    ends = [[token in sampling.eos_token_ids for token in tokens] for tokens in whole]
    assert all(end == [False] * (len(end) - 1) + [True] or (len(end) == 40 and not any(end)) for end in ends)
    assert sum(end[-1] for end in ends) > 5
    assert engine.sample(prompts, sampling, 1, 7, skipped)[0] == whole
    assert engine.sample(prompts[6:], sampling, 1, 7, skipped, rows=range(6, len(prompts)))[0] == whole[6:]
    assert engine.sample(prompts, sampling, 1, 8, skipped)[0] != whole
    assert engine.sample(prompts, sampling, 2, 7, skipped)[0] != whole
    assert len({tuple(row) for row in whole[6:9]}) > 1  # rows of one prompt differ


def test_seeds_differ_between_rows_steps_and_runs():
    seeds = {row_seed(seed, step, row) for seed in range(8) for step in range(8) for row in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed(1, 2, 3) == row_seed(1, 2, 3)


# ---- what would be wrong in silence ---------------------------------------------------------------


def forget_nothing(monkeypatch, engine):
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: True)


def keep_the_output_head(monkeypatch, engine):
    monkeypatch.setattr(vllm, "repack_output_head", lambda model: None)


def push_other_layers(monkeypatch, engine):
    renumbered = vllm.renumbered_weights
    monkeypatch.setattr(vllm, "renumbered_weights", lambda model, skipped: renumbered(model, [1, 2]))


@needs_vllm
@pytest.mark.parametrize("mistake", [forget_nothing, keep_the_output_head, push_other_layers])
def test_a_push_without_one_of_its_steps_is_seen_and_refused(mistake, engine, monkeypatch):
    if mistake is keep_the_output_head:
        from vllm import _custom_ops

        if not _custom_ops._supports_onednn:
            pytest.skip("vLLM packs no weights on this CPU")
    perturb(engine.source, 99)
    engine.sample(PROMPTS, PLAIN, 0, 0, [1, 2])
    perturb(engine.source, 100)
    mistake(monkeypatch, engine)
    assert largest_error(engine, [3, 4]) > 0.1
    perturb(engine.source, 101)
    with pytest.raises(
        NestingError, match=r"^sampler vllm cannot be used: Qwen2ForCausalLM gets other log-prob.*engine"
    ):
        refuse_wrong_logps(engine, PROMPTS, [3, 4])
    monkeypatch.undo()
    refuse_wrong_logps(engine, PROMPTS, [3, 4])
    assert largest_error(engine, [3, 4]) < 1e-4


@needs_vllm
def test_a_cache_that_is_not_forgotten_is_an_error(engine, monkeypatch):
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(NestingError, match=r"did not forget the keys and values of earlier weights"):
        engine.sample(PROMPTS, PLAIN, 0, 0, [1, 2])


@needs_vllm
def test_the_raw_log_probs_of_vllm_are_not_those_of_a_temperature(monkeypatch):
    monkeypatch.setattr(vllm, "logprobs_mode_for", lambda sampling: "raw_logprobs")
    model, warm = small(), PLAIN._replace(temperature=0.7)
    completions, logps = NestedVllmEngine(model, 1, PROMPTS, warm).sample(PROMPTS, warm, 0, 0, [2])
    model.lm_head.weight.data /= 0.7
    assert (flat(logps) - scored(model, [2], completions)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("sampling", "found"),
    [
        (PLAIN, "raw_logprobs"),
        (FIXED, "raw_logprobs"),
        (GREEDY, "raw_logprobs"),
        (PLAIN._replace(temperature=0.7), "processed_logprobs"),
    ],
)
def test_the_log_probs_that_vllm_tells(sampling, found):
    assert logprobs_mode_for(sampling) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"temperature": 0.7, "fixed_length": True},
            r"0\.7 with a fixed length, .* after its ban .* set temperature to 1",
        ),
        ({"temperature": 0.001}, r"temperature is 0\.001, but sampler vllm takes temperatures from 0\.01 to 2"),
        ({"temperature": 2.5}, r"temperature is 2\.5, but"),
    ],
)
def test_a_distribution_whose_log_probs_vllm_cannot_tell_is_refused(changes, words):
    with pytest.raises(NestingError, match=words):
        logprobs_mode_for(PLAIN._replace(**changes))


def test_layers_of_different_types_are_refused_before_vllm_is_loaded():
    with pytest.raises(NestingError, match=r"layers of a gemma2 model have different layer_types"):
        NestedVllmEngine(build("gemma2"), 1, PROMPTS, PLAIN)
    assert "vllm" not in sys.modules or hasattr(sys.modules["vllm"], "LLM")


# ---- the process around it ------------------------------------------------------------------------


@needs_vllm
def test_the_process_is_left_as_it_was():
    """Random states, threads, precision and environment, after an engine is made and after each call."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        set_num_threads = torch.set_num_threads
        before = process_state()
        engine = NestedVllmEngine(small(), 1, PROMPTS, PLAIN)
        assert process_state() == before
        engine.sample(PROMPTS, PLAIN, 0, 0, [2])
        assert process_state() == before
        assert torch.set_num_threads is set_num_threads
    finally:
        torch.set_num_threads(threads)


@needs_vllm
def test_an_engine_that_is_dropped_leaves_the_others_and_the_process_group(engine):
    other = NestedVllmEngine(small(), 1, PROMPTS, PLAIN)
    dropped = weakref.ref(other.llm)
    del other
    gc.collect()
    assert dropped() is None and torch.distributed.is_initialized()
    assert largest_error(engine, [2, 3]) < 1e-4


def process_state():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    states = [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002
    return [*states, torch.get_num_threads(), torch.get_float32_matmul_precision(), environment]


@needs_vllm
def test_a_push_is_cheap_and_keeps_no_memory(engine):
    """200 pushes, each followed by a roll-out of 32 completions of 64 tokens, which is printed with `pytest -s`."""
    prompts, sampling = [PROMPTS[2]] * 32, PLAIN._replace(max_new_tokens=64)
    pushes, rollouts, memory = [], [], []
    for step in range(200):
        skipped = draw_skipped_layers(valid(engine.source), 2, seed=0, step=step)
        started = time.perf_counter()
        engine.push(skipped)
        pushes.append(time.perf_counter() - started)
        if step % 20 == 0:
            started = time.perf_counter()
            engine.complete(prompts, sampling, 0, step, range(32))
            rollouts.append(time.perf_counter() - started)
        if step in (50, 199):
            gc.collect()  # slow with the objects of vLLM
            memory.append(psutil.Process().memory_info().rss / 2**20)
    print(f"push {1e3 * median(pushes):.1f} ms, roll-out {1e3 * median(rollouts):.0f} ms")
    print(f"{memory[0]:.0f} MiB after 51 pushes, {memory[1]:.0f} MiB after 200")
    assert memory[1] - memory[0] < 5


@needs_vllm
def test_a_sequence_that_does_not_fit_is_one_sentence(engine):
    with pytest.raises(
        UserError, match=r"^a prompt and its completion of 1000 tokens have 1150 tokens, more than the 1024 that"
    ):
        engine.complete(PROMPTS, PLAIN._replace(max_new_tokens=1000), 0, 0, range(5))


@needs_vllm
def test_the_sampler_has_an_engine_for_each_number_of_skipped_layers():
    model = small()
    config = GenerationConfig(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=4, pad_token_id=0)
    sampler = Sampler("vllm")
    for step, skipped in enumerate(([], [2], [1, 3], [3])):
        completions, logps = sampler.sample(model, skipped, PROMPTS, config, [2], 0, step)
        assert (flat(logps) - scored(model, skipped, completions)).abs().max() < 1e-4
    assert sorted(count for count, _ in sampler.vllm_engines) == [0, 1, 2] and sampler.kind == "vllm"


def test_the_bytes_of_keys_and_values():
    config = small().config
    assert kv_bytes_per_token(config, "float32") == 2 * 6 * 1 * 32 * 4
    assert kv_bytes_per_token(config, "bfloat16") == 2 * 6 * 1 * 32 * 2


# ---- evaluation -----------------------------------------------------------------------------------

QUESTIONS = ["Anna has 3 apples.", "Ben has 12 pears and buys 5 more.", "Anna has 3 apples.", "1 + 1?"]


@needs_vllm
def test_an_evaluation_has_the_completions_of_the_engine(wide_heads):
    by = {
        sampler: generate_completions(
            str(wide_heads),
            QUESTIONS,
            Evaluation(sampler=sampler, max_new_tokens=30, dtype="float32", batch_size=2),
        )
        for sampler in ("vllm", "engine")
    }
    assert by["vllm"].texts == by["engine"].texts and by["vllm"].lengths == by["engine"].lengths
    assert by["vllm"].sampler == "vllm" and len(set(by["vllm"].texts)) == 3


def test_completions_end_where_those_of_the_other_samplers_do(tmp_path, wide_heads):
    for folder in (TINY, wide_heads):
        model, tokenizer = load_model(folder, "float32")
        assert read_end_token_ids(str(folder), tokenizer) == end_token_ids(model, tokenizer) == (2, 0)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path, "float32")
    assert read_end_token_ids(str(tmp_path), tokenizer) == end_token_ids(model, tokenizer) == (tokenizer.eos_token_id,)


# ---- without vLLM ---------------------------------------------------------------------------------


@pytest.fixture()
def without_vllm(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find_spec(name))


def test_without_vllm_the_error_names_the_key_and_the_remedy(without_vllm, tmp_path):
    settings = Evaluation(sampler="vllm", max_new_tokens=7)
    words = r"'vllm', which is not installed; `pip install \.\[vllm\]`, or choose another sampler$"
    with pytest.raises(UserError, match=rf"^evaluation\.sampler is {words}"):
        generate_completions(str(TINY), QUESTIONS, settings)
    with pytest.raises(UserError, match=rf"^sampler is {words}"):
        Sampler("vllm")
    record = SimpleNamespace()
    with pytest.raises(UserError, match=rf"^training\.sampler is {words}"):
        train(Training(sampler="vllm", bf16=False), None, None, None, tmp_path, tmp_path, record)


def test_a_broken_vllm_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"cannot be imported \(.*vllm.*\); `pip install \.\[vllm\]`"):
        vllm.import_vllm()
