"""Packed rows give the log-probabilities and the gradients of TRL's rows, which repeat the prompts."""

import pytest
import torch
from trl.trainer import add_fused_lm_head

from nested_reft.errors import NestingError
from nested_reft.model.shared_prompts import FAMILIES, IGNORED, check_shared_prompts, pack
from tests.model.families import build

# Prompts of three lengths, in the order of a shuffled micro-batch: two, three and one completions.
ROWS = [([5, 6, 7, 8], [20, 21, 22]), ([9, 10], [23]), ([5, 6, 7, 8], [24, 25]), ([11], [26, 27, 28])]
ROWS += [([9, 10], [29, 30, 31]), ([9, 10], [32, 33])]
NUM_COMPLETION_TOKENS = 3


def trl_rows():
    """Return ids and mask as TRL pads them: prompts on the left, completions on the right; the padding is token 1."""
    ids, mask = torch.ones(len(ROWS), 7, dtype=torch.long), torch.zeros(len(ROWS), 7, dtype=torch.long)
    for row, (prompt, completion) in enumerate(ROWS):
        ids[row, 4 - len(prompt) : 4 + len(completion)] = torch.tensor(prompt + completion)
        mask[row, 4 - len(prompt) : 4 + len(completion)] = 1
    return ids, mask


def outputs_of_both(model):
    """Return the outputs (B, T) for the completion tokens, by TRL's forward and by packed rows."""
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    ids, mask = trl_rows()
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :-NUM_COMPLETION_TOKENS] = IGNORED
    plain = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    batch = pack(ids, mask, NUM_COMPLETION_TOKENS)
    packed = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        fused_lm_head=True,
    )
    return [
        (getattr(plain, name)[:, -NUM_COMPLETION_TOKENS:], batch.completions(getattr(packed, name)))
        for name in ("log_probs", "entropy")
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_trl(family):
    """In float64, so that only a wrong position, mask or label can exceed the tolerance."""
    model = build(family, **({"sliding_window": None} if family == "mistral" else {})).double()
    model.set_attn_implementation("sdpa")
    check_shared_prompts(model)
    (plain, packed), (plain_entropy, packed_entropy) = outputs_of_both(model)
    is_token = trl_rows()[1][:, -NUM_COMPLETION_TOKENS:] == 1
    assert (plain[is_token] < -0.1).all() and not packed[~is_token].any()
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed_entropy, plain_entropy, rtol=0, atol=1e-6)
    weights = torch.linspace(-1, 1, plain.numel(), dtype=plain.dtype).view_as(plain)  # another one for each token
    gradients = [
        torch.cat([grad.flatten() for grad in torch.autograd.grad((logps * weights).sum(), list(model.parameters()))])
        for logps in (plain, packed)
    ]
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)


def test_each_prompt_is_read_once():
    batch = pack(*trl_rows(), NUM_COMPLETION_TOKENS)
    # Three columns for prompts without their last token, and four for each of the three completions of a prompt.
    assert batch.input_ids.shape == (3, 3 + 3 * 4)
    assert batch.attention_mask.shape == (3, 1, 15, 15)
    read = [ids[ids > 1].tolist() for ids in batch.input_ids]
    assert sorted(read) == [
        [5, 6, 7, 8, 20, 21, 22, 8, 24, 25],
        [9, 10, 23, 10, 29, 30, 31, 10, 32, 33],
        [11, 26, 27, 28],
    ]


@pytest.mark.parametrize(
    ("family", "changes", "attention", "message"),
    [
        ("granite", {}, "sdpa", "the model is of the family granite, and the tested families are llama, "),
        ("mistral", {}, "sdpa", "layers of the model attend within a sliding window"),
        ("qwen2", {}, "eager", "its attention is eager"),
    ],
)
def test_other_models_are_refused(family, changes, attention, message):
    model = build(family, **changes)
    model.set_attn_implementation(attention)
    with pytest.raises(NestingError, match=f"{message}.*set share_prompts to False"):
        check_shared_prompts(model)
