"""Completions of nested models, and their exact KL and overlap against forwards that skip the layers plainly."""

import pytest
import torch
from transformers import AutoTokenizer

from nested_reft.config.stage_settings import NestedSampling
from nested_reft.model.layers import nested
from nested_reft.rollout import divergence
from tests.conftest import TINY
from tests.model.families import build

SMALL = NestedSampling(max_completion_length=16, batch_size=64)


def test_the_kl_of_a_layer_is_that_of_its_samples(small_model):
    """The exact KL of skipping one layer against the k1 estimate from tokens sampled with it skipped."""
    sampler = divergence.CompletionSampler(small_model, AutoTokenizer.from_pretrained(TINY), SMALL)
    rollouts = sampler.sample([[5, 6, 7], [8, 9]] * 200, [2], step=0)
    assert sampler.sampler.kind == "engine"
    estimate = -divergence.score_set(small_model, [2], rollouts, SMALL)[0]
    exact = divergence.layer_kls(small_model, [2], rollouts, SMALL)[2]
    assert exact > 0.01
    assert estimate.mean().item() == pytest.approx(exact, abs=4 * estimate.std().item() / len(estimate) ** 0.5)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "falcon"])  # layers of Falcon return tuples
def test_the_kl_of_each_layer_is_that_of_forwards_with_that_layer_skipped(family, monkeypatch):
    """Prompts and completions of several lengths, in several groups and chunks, at a temperature."""
    model, settings = build(family), SMALL.model_copy(update={"temperature": 0.7})
    prompts, completions = [[5, 6, 7, 8], [9], [10, 11]], [[12, 13], [14, 15, 16, 17], [18]]
    rollouts = divergence.Rollouts(prompts, completions, [[0.0] * len(tokens) for tokens in completions])
    monkeypatch.setattr(divergence, "LOGITS_PER_FORWARD", 2 * 6 * 160)
    monkeypatch.setattr(divergence, "LOGITS_PER_CHUNK", 3 * 160)
    passes = []
    found = divergence.layer_kls(model, [1, 2, 4], rollouts, settings, lambda: passes.append(1))
    assert len(passes) == 6 and list(found) == [1, 2, 4]

    def logps(skipped):
        with torch.no_grad(), nested(model, skipped):
            logits = [
                model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
                for prompt, tokens in zip(prompts, completions, strict=True)
            ]
        return (torch.cat(logits) / 0.7).log_softmax(dim=-1)

    ratios, kl, overlap = divergence.score_set(model, [1, 4], rollouts, settings)
    log_mu, log_pi = logps([1, 4]), logps([])
    assert torch.allclose(kl, (log_mu.exp() * (log_mu - log_pi)).sum(dim=-1), atol=1e-5)
    assert torch.allclose(overlap, 1 - (log_mu.exp() - log_pi.exp()).abs().sum(dim=-1) / 2, atol=1e-5)
    sets = divergence.divergences_of_sets(model, [[2], [1, 4]], rollouts, settings)
    assert torch.equal(sets[1][0], kl) and torch.equal(sets[1][1], overlap)
    assert sets[0][0].mean().item() == pytest.approx(found[2], rel=1e-4)
    for layer, kl in found.items():
        expected = (logps([layer]).exp() * (logps([layer]) - logps([]))).sum(dim=-1).mean().item()
        assert kl == pytest.approx(expected, rel=1e-4) and kl > 1e-3
    tokens = torch.tensor([token for row in completions for token in row])
    assert torch.allclose(ratios, logps([]).gather(1, tokens.unsqueeze(1)).squeeze(1), atol=1e-5)


@pytest.mark.parametrize("sampler", ["engine", "generate"])
def test_samples_follow_the_seed_and_an_engine_s_not_the_batch_size(sampler, small_model):
    tokenizer, prompts = AutoTokenizer.from_pretrained(TINY), [[5, 6, 7], [8, 9]] * 4

    def completions(**changes):
        settings = SMALL.model_copy(update={"sampler": sampler} | changes)
        torch.manual_seed(settings.seed)
        return divergence.CompletionSampler(small_model, tokenizer, settings).sample(prompts, [2], 0).completion_ids

    assert completions() == completions() != completions(seed=1)
    assert (completions() == completions(batch_size=3)) == (sampler == "engine")
