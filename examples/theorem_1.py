"""Theorem 1 on a model that can be enumerated: `python examples/theorem_1.py theorem_1.svg` draws the figure.

A model of eight layers samples three tokens from a vocabulary of six after one prompt: 216 sequences, each with a
fixed advantage. Every set of skipped layers and every sequence are enumerated, so that the policy gradient of the
target is known exactly, and so are the mean and the variance of its estimate from a nested roll-out under each
mitigation. Nothing is trained. The model is random and tiny, so that its numbers say nothing about other models:
the figure shows which estimators are biased, and which of them have the larger variance.
"""

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from nested_reft.config.sections import Nesting
from nested_reft.mitigation import importance_ratio, scale_gradient, token_weights
from nested_reft.model.layers import nested
from nested_reft.nesting import draw_skipped_layers, valid_layers
from nested_reft.rollout.generate import sample_by_generate

NUM_LAYERS, VOCABULARY, LENGTH = 8, 6, 3
PROMPT = [1, 2, 3]
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # (S, T)
ADVANTAGES = torch.rand(len(SEQUENCES), generator=torch.Generator().manual_seed(5)).double() - 0.5  # (S,)
VALID = valid_layers(NUM_LAYERS, border=1)
NEVER = VOCABULARY  # an EOS token outside of the vocabulary, so that all sequences have three tokens

# name in the figure -> (mitigation, level of the ratio)
ESTIMATORS = {
    "is, sequence": ("is", "sequence"),
    "is": ("is", "token"),
    "tis": ("tis", "token"),
    "retrace": ("retrace", "token"),
    "practical": ("practical", "token"),
}


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
    logps = token_logps(model, SEQUENCES)
    rows = []
    for value in logps.flatten():
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(parameter) if grad is None else grad).flatten()
                    for parameter, grad in zip(parameters, grads, strict=True)
                ]
            )
        )
    return torch.stack(rows).view(*logps.shape, -1)


def weights(mitigation: str, level: str, logps: torch.Tensor, behavior_logps: torch.Tensor) -> torch.Tensor:
    """Return h(r) (S, T), as the trainer computes it."""
    ratio = importance_ratio(logps, behavior_logps, torch.ones_like(logps), level)
    return token_weights(mitigation, ratio, Nesting(retrace_lambda=1.0, truncation_cap=2.0))


@torch.no_grad()
def policies(model: PreTrainedModel, k: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return log-probs (S, T) under the target, and under the nested model of every set of k skipped layers."""
    nested_logps = []
    for skipped_layers in itertools.combinations(VALID, k):
        with nested(model, skipped_layers):
            nested_logps.append(token_logps(model, SEQUENCES))
    return token_logps(model, SEQUENCES), nested_logps


def exact_gradient(logps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Return sum over sequences of pi(s) A(s) grad log pi(s), (parameters,)."""
    return torch.einsum("s,stp->p", logps.sum(1).exp() * ADVANTAGES, gradients)


def moments(k: int, mitigation: str, level: str, model: PreTrainedModel, gradients: torch.Tensor) -> Moments:
    """Return bias and standard deviation of the estimator, by enumeration of skipped layers and sequences."""
    logps, behaviors = policies(model, k)
    exact = exact_gradient(logps, gradients)
    mean, square = torch.zeros_like(exact), 0.0
    for behavior in behaviors:
        weight = weights(mitigation, level, logps, behavior)
        estimates = ADVANTAGES.unsqueeze(1) * torch.einsum("st,stp->sp", weight, gradients)  # (S, parameters)
        probability = behavior.sum(1).exp() / len(behaviors)  # of the skipped layers and the sequence, (S,)
        mean += probability @ estimates
        square += (probability @ estimates.square().sum(1)).item()
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
    weight = weights(mitigation, level, logps, torch.tensor(behavior_logps, dtype=torch.float64))
    (scale_gradient(logps, weight).sum(1) * ADVANTAGES[index_of(sequences)]).mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return gradient


def index_of(sequences: torch.Tensor) -> torch.Tensor:
    """Return the indices (B,) of sequences (B, T) in SEQUENCES."""
    return (sequences * VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def draw(path: Path) -> None:
    """Draw bias and standard deviation of one sequence's gradient against the skip ratio."""
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
            style = {"color": COLORS[mitigation], "marker": MARKERS[mitigation], "markersize": 5, "linewidth": 1.2}
            if level == "sequence":
                style |= {"linestyle": "--", "marker": "x"}
            elif mitigation == "is":  # wide, so that the lines near it stay visible
                style |= {"linewidth": 5, "markersize": 9, "alpha": 0.4}
            for axis, values in zip(axes, zip(*found, strict=True), strict=True):
                axis.plot(ratios, values, label=name, **style)
            print(
                f"{name:14s}",
                *(f"k={k}: bias {m.bias:.3f} sd {m.standard_deviation:.2f}" for k, m in enumerate(found)),
            )
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
