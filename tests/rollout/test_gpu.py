"""The engine on a GPU, with CUDA graphs when it is compiled. Skipped without a GPU."""

import pytest
import torch

from nested_reft.model.layers import nested
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.self_check import logprob_errors
from nested_reft.rollout.token_sampling import SamplingParams
from tests.model.families import PROMPTS
from tests.rollout.reference import GREEDY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
SKIP_SETS = ([], [2], [1, 4], [2])  # the last one replays the graphs of the second


@pytest.fixture()
def model(small_model):
    """Return a small model on the GPU, with matmuls in full float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    return small_model.to("cuda")


@torch.no_grad()
def greedy_by_generate(model, prompt):
    """Return greedy tokens of `generate` and the log-probs of its own logits, up to the first EOS token."""
    output = model.generate(
        input_ids=torch.tensor([prompt], device=model.device),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=list(GREEDY.eos_token_ids),
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, len(prompt) :]
    logps = torch.cat(output.logits).log_softmax(dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    return tokens.tolist(), logps.tolist()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("repeats", [1, 12])  # prompts of up to 84 tokens need more than one block of columns
def test_tokens_and_log_probs_are_those_of_generate(compiled, repeats, model):
    engine, prompts = RolloutEngine(model, compiled), [prompt * repeats for prompt in PROMPTS]
    for skipped in SKIP_SETS:
        completions, logps = engine.sample(prompts, GREEDY, seed=0, skipped=skipped)
        with nested(model, skipped):
            expected = [greedy_by_generate(model, prompt) for prompt in prompts]
        for completion, completion_logps, (tokens, token_logps) in zip(completions, logps, expected, strict=True):
            assert completion == tokens, skipped
            assert completion_logps == pytest.approx(token_logps, abs=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_sampled_log_probs_are_those_of_a_full_forward_after_the_weights_changed(compiled, model):
    """Rows are refilled, weights change in place, and then move to other addresses, which CUDA graphs must notice."""
    engine, prompts = RolloutEngine(model, compiled), PROMPTS * 3
    sampling = SamplingParams(max_new_tokens=20, eos_token_ids=(2, 3))
    for skipped in SKIP_SETS:
        completions, logps = engine.sample(prompts, sampling, seed=1, skipped=skipped, batch_size=5)
        with nested(model, skipped):
            assert logprob_errors(model, prompts, completions, logps).max() < 1e-4, skipped
        with torch.no_grad():
            model.model.layers[3].mlp.down_proj.weight.mul_(-1.5)
            moved = model.model.layers[5].mlp.up_proj
            moved.weight.data = 1.5 * moved.weight.data
