"""Nested-ReFT as hooks on TRL 1.16: one mixin, `NestedRollouts`, for GRPOTrainer and RLOOTrainer.

TRL calls the hooks in this order; the right column has the attributes that a hook sets for later hooks:

    training_step                              for each micro-batch
    |  _generate_and_score_completions         where a new generation batch is due
    |  |  _generate_single_turn                sample from the nested model        -> _behavior_logps: log mu
    |  |                                       and a share from the whole model    -> _is_whole
    |  |  _get_per_token_logps_and_entropies   only if TRL scores the batch        -> _target_logps: log pi
    |  |  _calculate_rewards                   keep the rewards                      -> _rewards
    |  |  (TRL computes advantages)
    |  |                                       add log mu, log pi and the rewards to the batch, which TRL shuffles and
    |  |                                       splits
    |  _compute_loss                           copy the inputs of the micro-batch  -> _loss_inputs
    |  |  _get_per_token_logps_and_entropies   the training forward, log pi_now
    |  |  |  _mitigate                         apply h to log pi_now, or put log mu into _loss_inputs (`base`);
    |  |  |                                    keep the micro-batch                  -> _micro_batches
    |  |  (TRL reads the copied inputs and computes the loss)
    |  step_metrics                            after the last micro-batch of an optimizer step

No forward is added to TRL's, but with `whole_share` that of log mu. With no layer skipped, the behavior policy is the
target policy: the training is that of stock TRL, bit for bit with sampler `generate`. The ratio is then only logged,
and shows the numerical noise.
"""

import copy
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl import GRPOTrainer, RLOOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, pad

from nested_reft.config.sections import Nesting
from nested_reft.errors import NestingError
from nested_reft.mitigation import check_mitigation, mixture_logps, scale_gradient
from nested_reft.model.checks import check_nestable
from nested_reft.model.layers import decoder_layers, language_model, skippable_layers
from nested_reft.model.shared_prompts import check_shared_prompts, pack
from nested_reft.nesting import num_skipped, sampled_whole
from nested_reft.off_policy import MicroBatch, metrics_of_step, ratio_and_weights
from nested_reft.rollout.generate import refuse_filters
from nested_reft.rollout.mixture import sample_mixture, sampler_of_whole
from nested_reft.rollout.sampler import Sampler
from nested_reft.strategies import Calibration, choose_layers

# The tensors of a micro-batch that the off-policy metrics need, and those that a record of the completions adds.
METRIC_TENSORS = ("old_per_token_logps", "sampling_per_token_logps", "completion_mask", "advantages", "is_whole")
COMPLETION_TENSORS = (
    *METRIC_TENSORS,
    "per_token_logps",
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "rewards",
)

_TRLTrainer: Any = object  # Mixin base: `self` is completed by the TRL trainer that it is combined with.


class NestedRollouts(_TRLTrainer):
    """Mixin for TRL trainers of the GRPO family: completions are sampled from the nested model.

    Args:
        *args: TRL's arguments.
        skip_ratio: x, the share of the model's layers that are skipped while sampling.
        border: b: only the layers i with b <= i < N-b are skipped.
        mitigation: a name of `nested_reft.mitigation.MITIGATIONS`, such as `retrace`.
        nesting: how the skipped layers are chosen, the share of the completions that the whole model samples, the
            level of the ratio, and the parameters of the mitigations.
        calibration: what the strategies `calibrated` and `budget` choose by; `nested_reft.stages.calibrate.calibrate`
            measures it.
        sampler: a `Sampler` or its name. With `generate`, the default, x = 0 is stock TRL bit for bit; `engine` is
            faster.
        keep_completions: whether `micro_batches` also has the prompts, the completions and their rewards.
        share_prompts: whether the training forward reads each prompt of a micro-batch once, for all of its
            completions. The loss is TRL's except for rounding.
        **kwargs: TRL's arguments.

    Attributes:
        micro_batches: the micro-batches of all ranks in the last optimizer step, as dicts of tensors on the CPU.

    Raises:
        NestingError: for a model, or an argument of TRL, with which the ratio would be silently wrong, and for layers
            that `nesting` and the calibration cannot choose.
        ValueError: if no mitigation has that name, or if `nesting.whole_share` times the completions of a prompt is
            not a whole number.
    """

    def __init__(
        self,
        *args: Any,
        skip_ratio: float,
        border: int = 1,
        mitigation: str,
        nesting: Nesting | None = None,
        calibration: Calibration | None = None,
        sampler: Sampler | str | None = None,
        keep_completions: bool = False,
        share_prompts: bool = False,
        **kwargs: Any,
    ) -> None:
        check_mitigation(mitigation)
        super().__init__(*args, **kwargs)
        refuse_arguments(self)
        check_nestable(self.model)
        if share_prompts:
            check_shared_prompts(self.model)
        self.share_prompts = share_prompts
        model = language_model(self.model)
        refuse_filters(self.generation_config, model.generation_config)
        self.skip_ratio, self.mitigation, self.nesting = skip_ratio, mitigation, nesting or Nesting()
        self.sampler = sampler if isinstance(sampler, Sampler) else Sampler(sampler or "generate", sleeps=True)
        self.calibration = calibration
        self.num_skipped = num_skipped(len(decoder_layers(model)), skip_ratio)
        self.valid_layers = skippable_layers(model, border)
        # Every step skips as many layers as the first, with the strategy `budget` perhaps fewer than x N. A choice
        # that cannot be made fails here.
        self.num_skipped = len(self.layers_of_step(0))
        sampled_whole((), self.nesting.whole_share, self.num_generations)  # fails now
        self.whole_share = self.nesting.whole_share if self.num_skipped else 0.0
        self.whole_sampler = sampler_of_whole(self.sampler) if self.whole_share else self.sampler
        # Under FSDP a rank holds a part of each weight, so it samples from a copy of its own.
        self._whole_model = whole_copy(self.model, self.sampler.dtype) if self.is_fsdp_enabled else None
        # State of the current generation batch.
        self.skipped_layers, self.sampled_at_step, self.prompts_sha256 = list[int](), 0, ""
        self._behavior_logps: list[list[float]] = []  # log mu of each completion
        self._is_whole = list[bool]()  # whether the whole model has sampled each completion
        self._target_logps: torch.Tensor | None = None  # log pi (B, T), if TRL scores the batch
        self._rewards = torch.empty(0)  # of the completions of all ranks by each function (completions, functions)
        # State of the current optimizer step.
        self.generated_tokens = 0
        self.seconds: dict[str, float] = defaultdict(float)  # by phase
        self._micro_batches: list[dict[str, torch.Tensor]] = []  # of this rank
        # Of the last complete optimizer step.
        self.keep_completions = keep_completions
        self.micro_batches: list[MicroBatch] = []
        self.token_weight_counts = list[int]()
        # The inputs of the current micro-batch, while its loss is computed.
        self._loss_inputs: dict[str, Any] | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to the phase, waiting for the GPU, whose work is asynchronous."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - started

    def layers_of_step(self, step: int) -> list[int]:
        """Return the layers that the behavior policy skips at a step, sorted."""
        return choose_layers(self.valid_layers, self.num_skipped, self.args.seed, step, self.nesting, self.calibration)

    # ---- sampling -------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: Any, *args: Any) -> Any:
        if not self.model.training:  # evaluation skips no layers
            return super()._generate_single_turn(prompt_ids, images, *args)
        if images is not None:
            raise NestingError("the prompts have images, which are not supported; train on text")
        self.sampled_at_step = self.state.global_step
        self.skipped_layers = self.layers_of_step(self.sampled_at_step)
        check_equal_layers(self.accelerator, self.sampled_at_step, self.skipped_layers)
        all_prompt_ids = gather_object(prompt_ids)  # those of rank 0 first, as one process would order them
        self.prompts_sha256 = hashlib.sha256(json.dumps(all_prompt_ids).encode()).hexdigest()
        rows = [self.accelerator.process_index * len(prompt_ids) + row for row in range(len(prompt_ids))]
        self._is_whole = sampled_whole(rows, self.whole_share, self.num_generations)
        with (
            self.timed("generate"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            if self._whole_model is not None:
                gather_weights(self.model, self._whole_model.to(self.accelerator.device))
            completion_ids, self._behavior_logps = sample_mixture(
                self.sampler,
                self.whole_sampler,
                self._whole_model or model,
                self.skipped_layers,
                prompt_ids,
                self._is_whole,
                self.generation_config,
                self.eos_token_ids,
                self.args.seed,
                self.sampled_at_step,
                rows,
                self.args.per_device_train_batch_size,
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
            first = self.accelerator.process_index * len(padded)
            batch["rewards"] = self._rewards[first : first + len(padded)]  # (B, functions)
            batch["is_whole"] = torch.tensor(self._is_whole, device=self.accelerator.device)  # (B,)
            if self._target_logps is not None:
                batch["old_per_token_logps"] = self._target_logps
        return batch

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        self._rewards = super()._calculate_rewards(*args)
        return self._rewards

    # ---- loss -----------------------------------------------------------------------------------

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._loss_inputs = inputs = dict(inputs)
        loss = super()._compute_loss(model, inputs)
        self._loss_inputs = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any, Any]:
        score = self._score_shared_prompts if self.share_prompts else super()._get_per_token_logps_and_entropies
        per_token_logps, entropies, aux_loss = score(*args, **kwargs)
        if self._loss_inputs is None:
            self._target_logps = per_token_logps
        elif "sampling_per_token_logps" in self._loss_inputs:
            per_token_logps = self._mitigate(per_token_logps, self._loss_inputs)
        return per_token_logps, entropies, aux_loss

    def _score_shared_prompts(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Take the place of TRL's `_get_per_token_logps_and_entropies`, and read each prompt once."""
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            batch = pack(ids, mask, logits_to_keep)
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    attention_mask=batch.attention_mask,
                    labels=batch.labels,
                    fused_lm_head=True,
                )
            logps.append(batch.completions(outputs.log_probs))
            if compute_entropy:
                entropies.append(batch.completions(outputs.entropy))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _mitigate(self, per_token_logps: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Return log pi_now (B, T) for the loss, with its gradient scaled; `base` changes `inputs` instead."""
        now = per_token_logps.detach()
        micro_batch = {name: inputs[name] for name in COMPLETION_TENSORS if name in inputs}
        # TRL scores a batch only if later optimizer steps use it again; otherwise log pi_now is log pi.
        micro_batch |= {"per_token_logps": now} if "old_per_token_logps" in inputs else {"old_per_token_logps": now}
        self._micro_batches.append(micro_batch)
        if self.num_skipped == 0:
            return per_token_logps
        if self.mitigation == "base":
            names = ("completion_mask", "old_per_token_logps", "sampling_per_token_logps")
            (mask, pi, mu), share = (micro_batch[name] for name in names), self.whole_share
            inputs["old_per_token_logps"] = mixture_logps(pi, mu, share)  # read by GRPO, per token
            inputs["old_logps"] = mixture_logps((pi * mask).sum(dim=1), (mu * mask).sum(dim=1), share)  # read by RLOO
            return per_token_logps
        _, weights = ratio_and_weights(micro_batch, self.mitigation, self.nesting, is_nested=True)
        return scale_gradient(per_token_logps, weights)

    # ---- bookkeeping ----------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Time forward and backward without the sampling and scoring of the batch, and log the step to TRL."""
        before = self.seconds["generate"] + self.seconds["score"]
        with self.timed("fwd_bwd"):
            loss = super().training_step(*args, **kwargs)
        self.seconds["fwd_bwd"] -= self.seconds["generate"] + self.seconds["score"] - before
        if self.accelerator.sync_gradients:  # the last micro-batch of an optimizer step
            for name, value in self.step_metrics().items():
                self._metrics["train"][name].append(value)  # TRL logs their mean over the steps since its last log
        return loss

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        sampler = super()._get_train_sampler(dataset)

        def set_epoch(epoch: int) -> None:
            """Advance the generator to its state in an uninterrupted run, which draws one permutation per epoch."""
            sampler.generator.manual_seed(self.args.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        # transformers calls set_epoch if the sampler has it. TRL's sampler has none: a run resumed in a later epoch
        # would repeat the order of the first epoch.
        sampler.set_epoch = set_epoch
        return sampler

    def step_metrics(self) -> dict[str, float]:
        """Return the metrics of the current optimizer step over all ranks, and begin the next.

        The durations are those of this rank.
        """
        metrics: dict[str, float] = {
            "nesting/num_skipped": len(self.skipped_layers),
            "nesting/skip_ratio": self.skip_ratio,
        }
        names = COMPLETION_TENSORS if self.keep_completions else METRIC_TENSORS
        self.micro_batches = gather_object(
            [{name: batch[name].cpu() for name in names if name in batch} for batch in self._micro_batches]
        )
        off_policy, self.token_weight_counts = metrics_of_step(
            self.micro_batches, self.mitigation, self.nesting, self.num_skipped > 0
        )
        metrics |= off_policy
        if self.generated_tokens:
            generated = torch.tensor([[self.generated_tokens, self.seconds["generate"]]], dtype=torch.float64)
            tokens_of_ranks, seconds = self.accelerator.gather(generated.to(self.accelerator.device)).unbind(dim=1)
            metrics["perf/generated_tok_s"] = (tokens_of_ranks.sum() / seconds.max()).item()
        metrics |= {f"perf/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        self._micro_batches.clear()
        self.seconds.clear()
        self.generated_tokens = 0
        return metrics

    def step_record(self) -> dict[str, Any]:
        """Return the facts of a step and of its generation batch that TRL's log cannot hold: they are not numbers."""
        return {
            "sampling/token_weight_counts": self.token_weight_counts,
            "nesting/skipped_layers": self.skipped_layers,
            "nesting/sampled_at_step": self.sampled_at_step,
            "data/prompts_sha256": self.prompts_sha256,
        }


def whole_copy(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return a copy of a model that is not sharded yet, from which a rank samples while the model is sharded.

    Args:
        model: the model, perhaps with adapters.
        dtype: the data type of the copy; None keeps that of the model.
    """
    copied = copy.deepcopy(model).requires_grad_(False).eval()
    language_model(copied).gradient_checkpointing_disable()
    # TRL has replaced the forward of the model by one that calls the model that it was made for.
    vars(language_model(copied)).pop("forward", None)
    return copied if dtype is None else copied.to(dtype)


@torch.no_grad()
def gather_weights(sharded: torch.nn.Module, whole: torch.nn.Module) -> None:
    """Copy the weights of a model that FSDP2 shards into a whole copy, one after the other; all ranks take part."""
    for source, target in zip(sharded.parameters(), whole.parameters(), strict=True):
        target.copy_(source.full_tensor() if isinstance(source, DTensor) else source)


def check_equal_layers(accelerator: Accelerator, step: int, skipped_layers: Sequence[int]) -> None:
    """Compare by their hash the layers that each rank skips; all ranks call this function.

    Raises:
        NestingError: if a rank skips other layers than rank 0, or skips them at another step; the message names it.
    """
    digest = hashlib.sha256(json.dumps([step, list(skipped_layers)]).encode()).digest()
    number = torch.tensor([int.from_bytes(digest[:8], "big", signed=True)], device=accelerator.device)
    numbers = accelerator.gather(number).tolist()
    others = [str(rank) for rank, number in enumerate(numbers) if number != numbers[0]]
    if others:
        raise NestingError(
            f"rank{'s' * (len(others) > 1)} {', '.join(others)} and rank 0 skip different layers at step {step}, so "
            "that they would sample from different policies; start the job again, which resumes at its last checkpoint"
        )


def refuse_arguments(trainer: Any) -> None:
    """Refuse arguments of TRL with which the nested model would not sample, or with which the ratio would be wrong.

    Raises:
        NestingError: if there is such an argument; the message names the argument and the remedy.
    """
    args = trainer.args
    if trainer.beta:
        raise NestingError(f"beta = {trainer.beta} asks for a reference model, which is not supported; set beta to 0")
    for name in ("use_vllm", "use_transformers_continuous_batching"):
        if getattr(args, name):
            raise NestingError(f"{name} samples from the full model, without skipping layers; set {name} to False")
    if getattr(trainer, "tools", None) or getattr(trainer, "rollout_func", None):
        raise NestingError(
            "tools, rollout_func and environment_factory replace TRL's single-turn sampling, but only single-turn "
            "sampling can be nested; leave them out"
        )
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
        raise NestingError(
            "DeepSpeed ZeRO-3 shards the parameters, so that the sampler would read incomplete weights; use FSDP2"
        )
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise NestingError(
            "FSDP1 shards the parameters, so that the sampler would read incomplete weights; set `version` in "
            "fsdp_config to 2"
        )


class NestedGRPOTrainer(NestedRollouts, GRPOTrainer):
    """TRL's GRPOTrainer with nested roll-outs."""


class NestedRLOOTrainer(NestedRollouts, RLOOTrainer):
    """TRL's RLOOTrainer with nested roll-outs. RLOO clips one ratio per sequence, and `base` changes that ratio."""
