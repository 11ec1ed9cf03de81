"""Theorem 1 on a model that can be enumerated: `python examples/theorem_1.py theorem_1.svg` draws the figure.

A model of eight layers samples three tokens from a vocabulary of six after one prompt: 216 sequences, each with a
fixed advantage. Every set of skipped layers and every sequence are enumerated, so that the policy gradient of the
target is known exactly, and so are the mean and the variance of its estimate from a nested roll-out under each
mitigation and each level of the ratio. Nothing is trained. The model is random and tiny, so that its numbers say
nothing about other models: they show which estimators are biased, and which of them have the larger variance.
"""

import argparse
import itertools
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from nested_reft.config.sections import Nesting
from nested_reft.mitigation import SampledTokens, scale_gradient, token_weights
from nested_reft.model.layers import nested
from nested_reft.nesting import draw_skipped_layers, valid_layers
from nested_reft.rollout.generate import sample_by_generate

NUM_LAYERS, VOCABULARY, LENGTH = 8, 6, 3
PROMPT = [1, 2, 3]
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # (S, T)
ADVANTAGES = torch.rand(len(SEQUENCES), generator=torch.Generator().manual_seed(5)).double() - 0.5  # (S,)
VALID = valid_layers(NUM_LAYERS, border=1)
NEVER = VOCABULARY  # an EOS token outside of the vocabulary, so that all sequences have three tokens

TERMINAL_ADVANTAGES = ADVANTAGES.unsqueeze(1)  # of a reward of the whole sequence, (S, 1)
# Of a reward of each token that depends on no later token, (S, T): sequences that begin alike share it.
PREFIX_ADVANTAGES = torch.stack(
    [ADVANTAGES[::step].repeat_interleave(step) for step in (VOCABULARY**later for later in reversed(range(LENGTH)))],
    dim=1,
)

# Parameters with which each correction changes some of these sequences and not all.
PARAMETERS = Nesting(icepop_max=2.0, sequence_mask_cap=2.0, geometric_mask_bound=1.2)

# name -> (mitigation, level of the ratio); `base` without its clip is `is`
DRAWN = {
    "is, sequence": ("is", "sequence"),
    "is": ("is", "token"),
    "tis": ("tis", "token"),
    "retrace": ("retrace", "token"),
    "practical": ("practical", "token"),
}
ESTIMATORS = DRAWN | {
    "is, prefix": ("is", "prefix"),
    "is, prefix_min": ("is", "prefix_min"),
    "is, geometric": ("is", "geometric"),
    "icepop": ("icepop", "token"),
    "sequence_mask": ("sequence_mask", "token"),
    "sequence_mask, sequence": ("sequence_mask", "sequence"),
    "geometric_mask": ("geometric_mask", "token"),
    "trace": ("trace", "token"),
    "topr": ("topr", "token"),
    "opsm": ("opsm", "token"),
}
# b, the share of the sequences that the whole model samples, with the mitigation `is` at the level `sequence`
WHOLE_SHARES = (0.125, 0.25, 0.5)


class Moments(NamedTuple):
    """Bias and standard deviation of the gradient of one sampled sequence, in units of the exact gradient's norm."""

    bias: float
    standard_deviation: float


def toy_model() -> PreTrainedModel:
    """Return the target policy, in float64."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).double().eval()


def token_logps(model: PreTrainedModel, sequences: torch.Tensor) -> torch.Tensor:
    """Return the log-probs (S, T) of the tokens of sequences (S, T)."""
    input_ids = torch.cat([torch.tensor([PROMPT]).expand(len(sequences), -1), sequences], dim=1)
    logits = model(input_ids, use_cache=False).logits[:, len(PROMPT) - 1 : -1]  # (S, T, V)
    return torch.log_softmax(logits, dim=-1).gather(2, sequences.unsqueeze(2)).squeeze(2)


def token_gradients(model: PreTrainedModel) -> torch.Tensor:
    """Return grad log pi(a_t | a_<t) of every token of every sequence, (S, T, parameters)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for sequences in SEQUENCES.split(12):
        logps = token_logps(model, sequences).flatten()
        each = torch.eye(len(logps), dtype=logps.dtype)  # selects one token
        grads = torch.autograd.grad(logps, parameters, each, is_grads_batched=True)
        rows.append(torch.cat([grad.flatten(1) for grad in grads], dim=1))
    return torch.cat(rows).view(*SEQUENCES.shape, -1)


def weights(
    mitigation: str,
    level: str,
    logps: torch.Tensor,
    behavior_logps: torch.Tensor,
    advantages: torch.Tensor,
    whole_share: float = 0.0,
) -> torch.Tensor:
    """Return h (S, T), as the trainer computes it, for advantages (S, 1) or (S, T)."""
    tokens = SampledTokens(logps.detach(), behavior_logps, torch.ones_like(logps), advantages, whole_share)
    return token_weights(mitigation, tokens, PARAMETERS.model_copy(update={"ratio_level": level}))


@cache
@torch.no_grad()
def policies(model: PreTrainedModel, k: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return log-probs (S, T) under the target, and under the nested model of every set of k skipped layers."""
    nested_logps = []
    for skipped_layers in itertools.combinations(VALID, k):
        with nested(model, skipped_layers):
            nested_logps.append(token_logps(model, SEQUENCES))
    return token_logps(model, SEQUENCES), nested_logps


def exact_gradient(
    logps: torch.Tensor, gradients: torch.Tensor, advantages: torch.Tensor = TERMINAL_ADVANTAGES
) -> torch.Tensor:
    """Return the sum over sequences s and tokens t of pi(s) A grad log pi(a_t), (parameters,).

    Args:
        logps: log pi of the tokens, (S, T).
        gradients: grad log pi(a_t), (S, T, parameters).
        advantages: A, of a sequence (S, 1) or of a token (S, T).
    """
    return torch.einsum("st,stp->p", logps.sum(1, keepdim=True).exp() * advantages, gradients)


def moments(
    k: int,
    mitigation: str,
    level: str,
    model: PreTrainedModel,
    gradients: torch.Tensor,
    advantages: torch.Tensor = TERMINAL_ADVANTAGES,
    whole_share: float = 0.0,
) -> Moments:
    """Return bias and standard deviation of the estimator, by enumeration of skipped layers and sequences.

    With a whole share b, a sequence is from the whole model with the probability b, and else from the nested one.
    """
    logps, behaviors = policies(model, k)
    exact = exact_gradient(logps, gradients, advantages)
    products = torch.einsum("stp,sup->stu", gradients, gradients)  # of the gradients of two tokens of a sequence
    expected, square = torch.zeros_like(logps), 0.0  # the expected weight of each token, the expected squared norm
    for behavior in behaviors:
        weight = advantages * weights(mitigation, level, logps, behavior, advantages, whole_share)  # (S, T)
        of_sequence = whole_share * logps.sum(1).exp() + (1 - whole_share) * behavior.sum(1).exp()  # (S,)
        probability = of_sequence / len(behaviors)  # of the skipped layers and the sequence, (S,)
        expected += probability.unsqueeze(1) * weight
        square += torch.einsum("s,st,stu,su->", probability, weight, products, weight).item()
    mean = torch.einsum("st,stp->p", expected, gradients)
    variance = square - mean.square().sum().item()
    return Moments((mean - exact).norm().item() / exact.norm().item(), variance**0.5 / exact.norm().item())


def sampled_gradient(
    model: PreTrainedModel, mitigation: str, level: str, k: int, step: int, rows: int
) -> torch.Tensor:
    """Return the gradient estimate of one step (parameters,), from `rows` sequences sampled with k layers skipped."""
    generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=LENGTH, pad_token_id=0
    )
    with nested(model, draw_skipped_layers(VALID, k, seed=0, step=step)), torch.no_grad():
        completions, behavior_logps = sample_by_generate(model, [PROMPT] * rows, generation_config, [NEVER])
    sequences = torch.tensor(completions)  # (B, T)
    logps = token_logps(model, sequences)
    advantages = ADVANTAGES[index_of(sequences)]
    behavior = torch.tensor(behavior_logps, dtype=torch.float64)
    weight = weights(mitigation, level, logps, behavior, advantages.unsqueeze(1))
    (scale_gradient(logps, weight).sum(1) * advantages).mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return gradient


def index_of(sequences: torch.Tensor) -> torch.Tensor:
    """Return the indices (B,) of sequences (B, T) in SEQUENCES."""
    return (sequences * VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def answer_about_the_prefix(model: PreTrainedModel, gradients: torch.Tensor) -> str:
    """Return whether the ratio of the prefix leaves the gradient unbiased, with k = 2 layers skipped."""
    terminal = moments(2, "is", "prefix", model, gradients).bias
    by_token = moments(2, "is", "prefix", model, gradients, PREFIX_ADVANTAGES).bias
    return (
        f"The prefix ratio has the bias {terminal:.3f} for a reward of the whole sequence, and {by_token:.3f} for a "
        "reward of each token that depends on no later token (k=2)."
    )


def draw(path: Path) -> None:
    """Print bias and standard deviation of one sequence's gradient, and draw some against the skip ratio."""
    import matplotlib.pyplot as plt

    from nested_reft.report.figures.common import COLORS, MARKERS, percent
    from nested_reft.report.style import STYLE

    model = toy_model()
    gradients = token_gradients(model)
    ratios = [k / NUM_LAYERS for k in range(5)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
        for name, (mitigation, level) in ESTIMATORS.items():
            found = [moments(k, mitigation, level, model, gradients) for k in range(5)]
            print(
                f"{name:23s}",
                *(f"k={k}: bias {m.bias:.3f} sd {m.standard_deviation:.2f}" for k, m in enumerate(found)),
            )
            if name not in DRAWN:
                continue
            style = {"color": COLORS[mitigation], "marker": MARKERS[mitigation], "markersize": 5, "linewidth": 1.2}
            if level == "sequence":
                style |= {"linestyle": "--", "marker": "x"}
            elif mitigation == "is":  # wide, so that the lines near it stay visible
                style |= {"linewidth": 5, "markersize": 9, "alpha": 0.4}
            for axis, values in zip(axes, zip(*found, strict=True), strict=True):
                axis.plot(ratios, values, label=name, **style)
        for share in WHOLE_SHARES:
            found = [moments(k, "is", "sequence", model, gradients, whole_share=share) for k in range(5)]
            print(
                f"whole_share {share:<11g}",
                *(f"k={k}: bias {m.bias:.3f} sd {m.standard_deviation:.2f}" for k, m in enumerate(found)),
            )
        print(answer_about_the_prefix(model, gradients))
        axes[0].set_title("bias of the gradient")
        axes[1].set_title("standard deviation of the gradient")
        for axis in axes:
            axis.set_xlabel("skip ratio")
            axis.set_xticks(ratios, [percent(ratio) for ratio in ratios])
        axes[0].set_ylabel("relative to the exact gradient's norm")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path, help="file to draw into, for example theorem_1.svg")
    draw(parser.parse_args().figure)
