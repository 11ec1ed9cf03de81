"""References that the roll-out engine is compared with: `generate`, and forwards without a KV cache."""

import pytest
import torch

from nested_reft.model.layers import nested
from nested_reft.nesting import draw_skipped_layers
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.self_check import unsupported_reason
from nested_reft.rollout.token_sampling import SamplingParams
from tests.model.families import FAMILIES, PROMPTS, valid

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, eos_token_ids=(2, 3))
SUPPORTED = [family for family in FAMILIES if family != "bloom"]


@torch.no_grad()
def greedy_by_generate(model, skipped):
    """Return greedy completions by `generate` from a left-padded batch, each up to its first EOS token."""
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
def scored_logps(model, skipped, completions):
    """Return the log-probs of completions from one forward each, without a KV cache."""
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
    """Check greedy tokens against `generate` and log-probs against a scoring forward, for several skip sets."""
    engine, allowed = RolloutEngine(model, compiled), valid(model)
    assert unsupported_reason(engine, PROMPTS, GREEDY) is None
    for skipped in ([], allowed[:1], draw_skipped_layers(allowed, 2, seed=0, step=0), allowed):
        completions, logps = engine.sample(PROMPTS, GREEDY, seed=0, skipped=skipped)
        assert completions == greedy_by_generate(model, skipped), skipped
        for engine_logps, reference in zip(logps, scored_logps(model, skipped, completions), strict=True):
            assert engine_logps == pytest.approx(reference, abs=1e-5)
    return engine
