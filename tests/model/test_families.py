"""Nesting every family of decoder-only models that transformers ships with a plain stack of layers.

Models of six narrow layers with random weights, in float32. For each of them and several sets of skipped layers, the
log-probs that sampling records, through the KV cache and from a left-padded batch, must be those of one full forward
that scores as TRL does: with a left-padded prompt and an attention mask, without positions.
"""

import itertools

import pytest
import torch
from transformers import GenerationConfig

from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import decoder_layers, nested
from nested_reft.nesting import draw_skipped_layers
from nested_reft.rollout.generate import sample_by_generate
from tests.model.families import FAMILIES, PROMPTS, build, valid

LENGTH = 8


@torch.no_grad()
def largest_error(model, skipped):
    """Return how far the recorded log-probs are from those of a scoring forward, both with the layers skipped."""
    generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=LENGTH, min_new_tokens=LENGTH, pad_token_id=0
    )
    torch.manual_seed(1)
    with nested(model, skipped):
        completions, logps = sample_by_generate(model, PROMPTS, generation_config, [2])
        width = max(map(len, PROMPTS))
        rows = [[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]
        mask = torch.tensor([[int(token > 0) for token in row] + [1] * LENGTH for row in rows])
        input_ids = torch.tensor([row + completion for row, completion in zip(rows, completions, strict=True)])
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, width - 1 : -1]
    scored = torch.log_softmax(logits.float(), -1).gather(2, input_ids[:, width:].unsqueeze(2)).squeeze(2)
    return (scored - torch.tensor(logps)).abs().max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_skipped_layers_is_a_full_forward_without_them(family):
    model = build(family)
    check_nestable(model)
    allowed = valid(model)
    subsets = [draw_skipped_layers(allowed, k, seed=0, step=step) for k, step in itertools.product((2, 3), range(2))]
    for skipped in [[], *([layer] for layer in allowed), *subsets, allowed]:
        assert largest_error(model, skipped) < 1e-4, f"{family} without layers {skipped}"


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_first_layer_of_a_type_allowed_it_would_be_silently_wrong(family):
    """Why those layers are never valid, and the proof that the test above can fail."""
    model = build(family)
    types = getattr(model.config, "layer_types", None) or ["the only one"] * 6
    errors = {types.index(kind): largest_error(model, [types.index(kind)]) for kind in types}
    assert not set(errors) & set(valid(model))
    assert errors[0] > 1e-2
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))
    if family in ("gemma2", "gpt_oss"):  # alternating: the first of the second type is layer 1, inside of the border
        assert errors[1] > 1e-2
