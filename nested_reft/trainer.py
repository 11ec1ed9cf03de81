"""Nested-ReFT as hooks on TRL 1.16: the same few for GRPOTrainer and RLOOTrainer.

- `_generate_single_turn`: sample from the nested model and keep log mu(a_t).
- `_generate_and_score_completions`: put log mu, and log pi where TRL scores it, into the batch; TRL
  shuffles and splits them with the rest.
- `_compute_loss` and `_get_per_token_logps_and_entropies`: apply the mitigation to the log-probs of the
  training forward itself. No forward is added to TRL's. The rest is bookkeeping.

With no layer skipped the behavior policy *is* the target policy: the samples are then on-policy (bit for bit
as in stock TRL where `generate` draws them) and the measured ratio is only logged, as the noise floor.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOTrainer, RLOOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, pad

from nested_reft.config.sections import Nesting
from nested_reft.errors import NestingError
from nested_reft.mitigation import importance_ratio, off_policy_metrics, scale_gradient, token_weights
from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import decoder_layers, language_model, skippable_layers
from nested_reft.nesting import draw_skipped_layers, num_skipped
from nested_reft.rollout.generate import refuse_filters
from nested_reft.rollout.sampler import Sampler

_TRLTrainer: Any = object  # the hooks below find the rest of themselves in the TRL trainer they are mixed with


class NestedRollouts(_TRLTrainer):
    """Mix into a TRL trainer of the GRPO family: its completions come from the nested model.

    Args:
        *args: TRL's.
        skip_ratio: x, the share of the layers that a roll-out skips.
        mitigation: `base`, `practical`, `retrace`, `is` or `tis` (`nested_reft.mitigation`).
        nesting: border, ratio level, and the parameters of the mitigations.
        sampler: who draws the completions; with `generate`, x = 0 is stock TRL bit for bit.
        **kwargs: TRL's.

    Raises:
        NestingError: for a model, or a sampling filter, with which the ratio would be silently wrong.
    """

    def __init__(
        self,
        *args: Any,
        skip_ratio: float,
        mitigation: str,
        nesting: Nesting,
        sampler: Sampler | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.beta:
            raise NestingError(f"beta = {self.beta} asks for a reference model, which is not supported; set beta to 0")
        check_nestable(self.model)
        model = language_model(self.model)
        refuse_filters(self.generation_config, model.generation_config)
        self.skip_ratio, self.mitigation, self.nesting = skip_ratio, mitigation, nesting
        self.sampler = sampler or Sampler("generate")
        self.num_skipped = num_skipped(len(decoder_layers(model)), skip_ratio)
        self.valid_layers = skippable_layers(model, nesting.border)
        # of the current generation batch
        self.skipped, self.sampled_at_step, self.prompts_sha256 = list[int](), 0, ""
        self._behavior_logps: list[list[float]] = []  # log mu
        self._target_logps: torch.Tensor | None = None  # log pi, where TRL scores it: (B, T)
        # of the current optimizer step
        self.generated_tokens = 0
        self.seconds: dict[str, float] = defaultdict(float)  # by phase
        self._off_policy: list[tuple[torch.Tensor, ...]] = []  # (log r, r, h(r)) per micro-batch
        # of the current micro-batch, while its loss is computed
        self._loss_inputs: dict[str, Any] | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to the phase; waits for the GPU, whose work is asynchronous."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - started

    # ---- sampling -------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any) -> Any:
        if not self.model.training:  # evaluation never skips
            return super()._generate_single_turn(prompt_ids, *args)
        self.sampled_at_step = self.state.global_step
        self.skipped = draw_skipped_layers(self.valid_layers, self.num_skipped, self.args.seed, self.sampled_at_step)
        self.prompts_sha256 = hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest()
        draws_of = (self.args.seed, self.sampled_at_step, self.accelerator.process_index * len(prompt_ids))
        with (
            self.timed("generate"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            completion_ids, self._behavior_logps = self.sampler.sample(
                model, self.skipped, prompt_ids, self.generation_config, self.eos_token_ids, *draws_of
            )
        self.generated_tokens += sum(map(len, completion_ids))
        return (completion_ids, None) if isinstance(self, GRPOTrainer) else completion_ids

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._target_logps = None
        before = self.seconds["generate"]
        with self.timed("score"):
            batch = super()._generate_and_score_completions(inputs)
        self.seconds["score"] -= self.seconds["generate"] - before
        if self.model.training:
            logps = [torch.tensor(row) for row in self._behavior_logps]
            padded = pad(logps, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
            batch["sampling_per_token_logps"] = padded.to(self.accelerator.device)  # (B, T)
            if self._target_logps is not None:
                batch["old_per_token_logps"] = self._target_logps
        return batch

    # ---- loss -----------------------------------------------------------------------------------

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._loss_inputs = inputs = dict(inputs)
        loss = super()._compute_loss(model, inputs)
        self._loss_inputs = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any, Any]:
        per_token_logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is None:
            self._target_logps = per_token_logps
        elif "sampling_per_token_logps" in self._loss_inputs:
            per_token_logps = self._mitigate(per_token_logps, self._loss_inputs)
        return per_token_logps, entropies, aux_loss

    def _mitigate(self, per_token_logps: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Return log pi_now (B, T) as the loss shall see it; `base` changes the old policy of the loss instead."""
        mask, sampling_per_token_logps = inputs["completion_mask"], inputs["sampling_per_token_logps"]
        # log pi at the time of sampling: it is still the current one unless the batch outlives an optimizer step
        old_per_token_logps = inputs.get("old_per_token_logps", per_token_logps.detach())
        ratio = importance_ratio(old_per_token_logps, sampling_per_token_logps, mask, self.nesting.ratio_level)
        applied = torch.ones_like(ratio)
        if self.num_skipped > 0:
            applied = token_weights(self.mitigation, ratio, self.nesting)
            if self.mitigation == "base":
                inputs["old_per_token_logps"] = sampling_per_token_logps  # GRPO's, per token
                inputs["old_logps"] = (sampling_per_token_logps * mask).sum(dim=1)  # RLOO's, per sequence
            else:
                per_token_logps = scale_gradient(per_token_logps, applied)
        log_ratio = old_per_token_logps - sampling_per_token_logps  # (B, T)
        self._off_policy.append((log_ratio[mask.bool()], ratio[mask.bool()], applied[mask.bool()]))
        return per_token_logps

    # ---- bookkeeping ----------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Time forward and backward apart from what was done to fill the batch."""
        before = self.seconds["generate"] + self.seconds["score"]
        with self.timed("fwd_bwd"):
            loss = super().training_step(*args, **kwargs)
        self.seconds["fwd_bwd"] -= self.seconds["generate"] + self.seconds["score"] - before
        return loss

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        sampler = super()._get_train_sampler(dataset)

        def set_epoch(epoch: int) -> None:
            """Bring the generator to where an uninterrupted run has it: one permutation drawn per epoch before."""
            sampler.generator.manual_seed(self.args.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        # transformers calls set_epoch where there is one. TRL's sampler has none, so that a run resumed
        # in a later epoch would see the first epoch's order again.
        sampler.set_epoch = set_epoch
        return sampler

    def step_metrics(self) -> dict[str, Any]:
        """Return, and forget, what this optimizer step measured."""
        of_tokens = (torch.cat(tensors) for tensors in zip(*self._off_policy, strict=True))
        metrics: dict[str, Any] = dict(off_policy_metrics(*of_tokens))
        metrics |= {"nesting/num_skipped": self.num_skipped, "nesting/skip_ratio": self.skip_ratio}
        metrics |= {"nesting/skipped_layers": self.skipped, "nesting/sampled_at_step": self.sampled_at_step}
        metrics["data/prompts_sha256"] = self.prompts_sha256
        if self.generated_tokens:
            metrics["perf/generated_tok_s"] = self.generated_tokens / self.seconds["generate"]
        metrics |= {f"perf/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        self._off_policy.clear()
        self.seconds.clear()
        self.generated_tokens = 0
        return metrics


class NestedGRPOTrainer(NestedRollouts, GRPOTrainer):
    """GRPO with nested roll-outs."""


class NestedRLOOTrainer(NestedRollouts, RLOOTrainer):
    """RLOO with nested roll-outs. Its ratio, and with it `base`, is that of whole sequences."""
