"""Completions of nested models, and how far the policies mu and pi are from each other on them.

A diagnosis, a calibration and the gradients of `nested-reft gradients` begin with these functions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nested_reft.config.stage_settings import NestedSampling
from nested_reft.model.layers import decoder_layers, layers_return_tuples, nested, replaced_forwards
from nested_reft.model.loading import end_token_ids
from nested_reft.model.scoring import completion_logits, log_probs
from nested_reft.rollout.sampler import Sampler

# The largest number of logits of a forward that scores completions, and of a chunk of them whose KL is computed at
# once. The first bounds the memory, and a chunk stays in the cache of a CPU.
LOGITS_PER_FORWARD, LOGITS_PER_CHUNK = 2**26, 2**20


class Rollouts(NamedTuple):
    """Prompts with sampled completions, and log mu(a_t) of their tokens."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    sampling_per_token_logps: list[list[float]]


class CompletionSampler:
    """Samples completions in batches from the model without its skipped layers."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: NestedSampling) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.sampler = Sampler(settings.sampler)
        self.eos_token_ids = list(end_token_ids(model, tokenizer))
        self.generation_config = GenerationConfig(
            do_sample=True,
            temperature=settings.temperature,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            max_new_tokens=settings.max_completion_length,
            min_new_tokens=settings.max_completion_length if settings.fixed_length else None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=self.eos_token_ids,
        )

    def sample(self, prompt_ids: list[list[int]], skipped_layers: list[int], step: int) -> Rollouts:
        """Sample a completion for each prompt; an engine's random numbers are a function of the seed and the step."""
        completion_ids: list[list[int]] = []
        logps: list[list[float]] = []
        for start in range(0, len(prompt_ids), self.settings.batch_size):
            batch = prompt_ids[start : start + self.settings.batch_size]
            completions, batch_logps = self.sampler.sample(
                self.model,
                skipped_layers,
                batch,
                self.generation_config,
                self.eos_token_ids,
                self.settings.seed,
                step,
                rows=range(start, start + len(batch)),
            )
            completion_ids += completions
            logps += batch_logps
        return Rollouts(prompt_ids, completion_ids, logps)


def groups_of_rows(model: PreTrainedModel, rollouts: Rollouts, settings: NestedSampling) -> list[slice]:
    """Return the rows that are scored at once: at most `batch_size` of them, and at most LOGITS_PER_FORWARD logits."""
    longest = max(len(prompt) + len(tokens) for prompt, tokens in zip(*rollouts[:2], strict=True))
    vocab_size = model.get_output_embeddings().weight.shape[0]
    size = max(1, min(settings.batch_size, LOGITS_PER_FORWARD // (longest * vocab_size)))
    return [slice(start, start + size) for start in range(0, len(rollouts.prompt_ids), size)]


def vocabulary_logps(logits: torch.Tensor, settings: NestedSampling) -> torch.Tensor:
    """Return the log-probs (T, V) of the whole vocabulary from logits (T, V)."""
    return log_probs(logits.float() / settings.temperature)


def divergences(
    logits_of_mu: Sequence[torch.Tensor], log_pis: Sequence[torch.Tensor], settings: NestedSampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(mu || pi) and 1 - TV(mu, pi) of each token's distribution, exact over the vocabulary, (tokens,) each.

    Args:
        logits_of_mu: the logits of the nested model, (T, V) for each completion.
        log_pis: the log-probs of the full model, (T, V) for each completion.
        settings: how the completions were sampled.
    """
    kls, overlaps = [], []
    for logits, log_pi in zip(logits_of_mu, log_pis, strict=True):
        size = max(1, LOGITS_PER_CHUNK // logits.shape[1])
        for logits_of_chunk, log_pi_of_chunk in zip(logits.split(size), log_pi.split(size), strict=True):
            log_mu = vocabulary_logps(logits_of_chunk, settings)
            kls.append((log_mu.exp() * (log_mu - log_pi_of_chunk)).sum(dim=-1))
            overlaps.append(torch.minimum(log_mu, log_pi_of_chunk).exp().sum(dim=-1))
    return torch.cat(kls).cpu(), torch.cat(overlaps).cpu()


def score_set(
    model: PreTrainedModel, skipped_layers: Sequence[int], rollouts: Rollouts, settings: NestedSampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log pi(a_t) - log mu(a_t) of all sampled tokens, and the `divergences` there, (tokens,) each.

    The model is pi, and mu skips these layers. Each model scores the roll-outs once.
    """
    ratios, divergences_of_rows = [], []
    for rows in groups_of_rows(model, rollouts, settings):
        prompt_ids, completion_ids, sampling_logps = (column[rows] for column in rollouts)
        log_pis = [
            vocabulary_logps(logits, settings) for logits in completion_logits(model, prompt_ids, completion_ids)
        ]
        for completion, mu_logps, log_pi in zip(completion_ids, sampling_logps, log_pis, strict=True):
            tokens = torch.tensor(completion, device=model.device)
            target_logps = log_pi.gather(1, tokens.unsqueeze(1)).squeeze(1)
            ratios.append(target_logps.cpu() - torch.tensor(mu_logps))
        with nested(model, skipped_layers):
            logits_of_mu = completion_logits(model, prompt_ids, completion_ids)
        divergences_of_rows.append(divergences(logits_of_mu, log_pis, settings))
    kls, overlaps = zip(*divergences_of_rows, strict=True)
    return torch.cat(ratios), torch.cat(kls), torch.cat(overlaps)


def divergences_of_sets(
    model: PreTrainedModel, sets: Sequence[Sequence[int]], rollouts: Rollouts, settings: NestedSampling
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the `divergences` of all tokens, (tokens,) each, for each set of layers that mu skips.

    The model is pi, and scores the roll-outs once for all sets.
    """
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in sets]
    for rows in groups_of_rows(model, rollouts, settings):
        batch = rollouts.prompt_ids[rows], rollouts.completion_ids[rows]
        log_pis = [vocabulary_logps(logits, settings) for logits in completion_logits(model, *batch)]
        for skipped_layers, of_set in zip(sets, found, strict=True):
            with nested(model, skipped_layers):
                of_set.append(divergences(completion_logits(model, *batch), log_pis, settings))
    return [(torch.cat(kls), torch.cat(overlaps)) for kls, overlaps in (zip(*of_set, strict=True) for of_set in found)]


@contextmanager
def hidden_states_kept(layers: torch.nn.ModuleList) -> Iterator[list[torch.Tensor]]:
    """Yield the list of the hidden states (R, T, W) that each layer gets in the forward of the block."""
    kept: list[torch.Tensor] = []

    def keep(layer: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def layer_kls(
    model: PreTrainedModel,
    layers: Sequence[int],
    rollouts: Rollouts,
    settings: NestedSampling,
    on_pass: Callable[[], object] = lambda: None,
) -> dict[int, float]:
    """Return KL(mu || pi) in nats per token, exact over the vocabulary, where mu skips one layer alone, by layer.

    The model is pi. The layers before the skipped one compute the same in mu as in pi, so that the forward of mu
    begins with the hidden states that pi has at the skipped layer.

    Args:
        model: the model.
        layers: the indices of the layers.
        rollouts: the completions whose tokens are scored.
        settings: how the completions were sampled.
        on_pass: called after each forward of a nested model.
    """
    stack, as_tuple = decoder_layers(model), layers_return_tuples(model)
    totals, tokens = dict.fromkeys(layers, 0.0), sum(map(len, rollouts.completion_ids))
    for rows in groups_of_rows(model, rollouts, settings):
        prompt_ids, completion_ids = rollouts.prompt_ids[rows], rollouts.completion_ids[rows]
        with hidden_states_kept(stack) as hidden_states:
            log_pis = [
                vocabulary_logps(logits, settings) for logits in completion_logits(model, prompt_ids, completion_ids)
            ]
        for layer in layers:
            known = hidden_states[layer]
            output: Any = (known, None) if as_tuple else known
            with replaced_forwards(stack, dict.fromkeys(range(layer + 1), lambda *_, output=output, **__: output)):
                kls, _ = divergences(completion_logits(model, prompt_ids, completion_ids), log_pis, settings)
            totals[layer] += kls.sum().item()
            on_pass()
    return {layer: total / tokens for layer, total in totals.items()}


def percentile(values: torch.Tensor, percent: float) -> float:
    """Return a percentile of values (n,)."""
    return float(np.percentile(values.numpy(), percent))
