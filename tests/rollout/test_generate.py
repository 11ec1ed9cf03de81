"""Sampling by `generate`: the log-probs are those of the behavior policy, one per token."""

import pytest
import torch
from transformers import GenerationConfig

from nested_reft.config.sections import Evaluation
from nested_reft.data.prompts import format_prompt
from nested_reft.embedded.problems import generate
from nested_reft.model.layers import nested
from nested_reft.model.loading import load_model
from nested_reft.rollout.generate import complete_by_generate, sample_by_generate
from tests.conftest import TINY

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]] * 4
EOS = [2, 3]


def config(**changes):
    return GenerationConfig(
        do_sample=True, temperature=0.7, top_k=0, max_new_tokens=12, pad_token_id=0, eos_token_id=EOS, **changes
    )


@torch.no_grad()
def rescored(model, prompt, completion, temperature=0.7):
    """Return log-probs of the completion from one forward over the unpadded sequence."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("skipped", [[], [1, 3]])
@pytest.mark.parametrize("min_new_tokens", [None, 5, 12])
def test_log_probs_equal_a_scoring_forward_of_the_nested_model(small_model, skipped, min_new_tokens):
    torch.manual_seed(0)
    small_model.lm_head.weight.data[EOS] += 0.3 * small_model.lm_head.weight.data.mean(
        0
    )  # EOS is sampled now and then
    with nested(small_model, skipped), torch.no_grad():
        completions, logps = sample_by_generate(small_model, PROMPTS, config(min_new_tokens=min_new_tokens), EOS)
        for prompt, completion, logp in zip(PROMPTS, completions, logps, strict=True):
            assert len(completion) == len(logp)
            # 1e-5 in fp32, also where EOS was banned, because the ban is not part of the recorded distribution
            assert torch.allclose(torch.tensor(logp), rescored(small_model, prompt, completion), atol=1e-5)


@pytest.mark.parametrize("skipped", [[], [4, 11, 20]])
def test_log_probs_in_bfloat16_stay_within_its_rounding(skipped):
    """On average at most .01 and always at most .3 nats, as concepts/algorithm.md states, on the embedded model."""
    model, tokenizer = load_model(TINY, "bfloat16")
    prompts = [
        tokenizer(format_prompt(row.problem, "qwen-math"))["input_ids"]
        for row in generate("mixed", "train", 32, seed=1)
    ]
    eos = [tokenizer.eos_token_id]
    torch.manual_seed(0)
    with nested(model.eval(), skipped), torch.no_grad():
        completions, logps = sample_by_generate(model, prompts, config(min_new_tokens=12), eos)
        errors = torch.cat(
            [
                (torch.tensor(logp) - rescored(model, prompt, completion)).abs()
                for prompt, completion, logp in zip(prompts, completions, logps, strict=True)
            ]
        )
    assert 0 < errors.mean() < 0.01 and errors.max() < 0.3


def test_fixed_length_never_ends_early(small_model):
    small_model.lm_head.weight.data[2] = 10 * small_model.lm_head.weight.data[7]
    completions, _ = sample_by_generate(small_model, PROMPTS, config(min_new_tokens=12), EOS)
    assert all(len(completion) == 12 and not set(completion) & set(EOS) for completion in completions)


def test_completions_end_with_any_eos_token(small_model):
    generator = torch.Generator().manual_seed(0)
    small_model.lm_head.weight.data[EOS] = 3 * torch.randn(2, 32, generator=generator)
    torch.manual_seed(0)
    completions, logps = sample_by_generate(small_model, PROMPTS * 4, config(), EOS)
    short = [completion for completion in completions if len(completion) < 12]
    assert {completion[-1] for completion in short} == set(EOS)
    assert all(not set(completion[:-1]) & set(EOS) for completion in completions)
    assert [len(row) for row in logps] == [len(row) for row in completions]


def test_same_tokens_as_transformers_own_ban(small_model):
    """Recording log-probs does not change which tokens are sampled."""
    prompts = torch.tensor([PROMPTS[0]] * 8)
    torch.manual_seed(3)
    expected = small_model.generate(
        prompts, attention_mask=torch.ones_like(prompts), generation_config=config(min_new_tokens=12)
    )
    torch.manual_seed(3)
    completions, _ = sample_by_generate(small_model, [PROMPTS[0]] * 8, config(min_new_tokens=12), EOS)
    assert expected[:, 4:].tolist() == completions


@pytest.mark.parametrize("ends", [[2, 0], 2, None])
def test_a_completion_ends_with_its_eos_token_also_where_that_is_the_pad_token(ends):
    model, tokenizer = load_model(TINY, "float32")
    prompts = tokenizer([format_prompt(row.problem, "qwen-math") for row in generate("mixed", "train", 8, seed=1)])
    completed = {}
    for pad in ("<|endoftext|>", tokenizer.eos_token):  # the tokens 0 and 2
        tokenizer.pad_token = pad
        model.generation_config.eos_token_id = ends
        settings = Evaluation(max_new_tokens=40, batch_size=8)
        completed[pad] = complete_by_generate(model, tokenizer, prompts["input_ids"], settings, lambda number: None)
    one, other = completed.values()
    assert one == other
    for completion in one:
        assert (completion[-1] == 2 and completion.count(2) == 1) if ends else len(completion) == 40
