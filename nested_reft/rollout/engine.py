"""The roll-out engine: batches of completions from a decoder-only model, some of its layers skipped.

transformers' `generate` prefills a prompt once per completion, allocates memory for each token, and samples from the
global random state. The engine runs the model's own forward over static memory instead:

- a prompt is prefilled once, however many completions share it;
- keys and values are stored in buffers that are allocated once and reused (`kv_cache.py`);
- each batch row writes at its own position, so a waiting prompt takes over the row of a finished completion;
- log mu(a_t) is computed from the logits that a_t is sampled from: no second forward, no (B, T, V) tensor;
- random numbers are a function of (seed, step, completion), however the completions are split into batches.

Without `compiled` the engine is plain PyTorch, the reference path. With `compiled` the decode steps of the layers are
compiled (`compiled.py`). `sampler.py` chooses between them and `generate`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

from nested_reft.model.layers import decoder_layers, language_model, nested
from nested_reft.rollout.compiled import CompiledLayers
from nested_reft.rollout.kv_cache import CachePositions, PrefillRows, StaticKVLayer
from nested_reft.rollout.token_sampling import SamplingParams, philox_uniforms, sample_tokens, truncate_after_eos

# KV buffers, and the part of them that attention reads, grow in blocks of this many columns. The block is larger on
# a GPU, where each size has its own CUDA graph.
COLUMN_BLOCK, COLUMN_BLOCK_ON_GPU = 16, 64
# The completion of an idle row. An idle row still decodes, and its tokens go to the last output row, which is unused.
IDLE = -1


class RolloutEngine:
    """Samples completions from a model, with buffers that are kept between roll-outs.

    Args:
        model: a decoder-only language model for which `unsupported_reason` returns None.
        compiled: whether to compile the decode steps of the layers.
        dtype: sample from a copy of the weights in this type, which is synchronized before each roll-out. None
            samples from the weights themselves.
    """

    def __init__(self, model: PreTrainedModel, compiled: bool = False, dtype: torch.dtype | None = None) -> None:
        self.source = language_model(model)
        self.model = self.source if dtype in (None, self.source.dtype) else clone_in_dtype(self.source, dtype)
        self.compiled = compiled
        self.positions: CachePositions | None = None
        self.cache: Cache | None = None
        self.compiled_layers: CompiledLayers | None = None
        self.zero = torch.zeros((), dtype=self.model.dtype, device=self.model.device)
        self.least = torch.full_like(self.zero, torch.finfo(self.model.dtype).min)
        config = self.model.config.get_text_config()
        self.sliding_window = getattr(config, "sliding_window", None)
        # If a config has no attention type per layer, either all layers have a sliding window or none has.
        common_type = "sliding_attention" if self.sliding_window else "full_attention"
        self.attention_types = set(getattr(config, "layer_types", None) or [common_type])

    @torch.no_grad()
    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingParams,
        seed: int,
        step: int = 0,
        skipped: Sequence[int] = (),
        batch_size: int | None = None,
        rows: Sequence[int] | None = None,
        on_finished: Callable[[int], object] = lambda num_finished: None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt.

        Args:
            prompt_ids: the prompts, of any lengths. A prompt that occurs n times gets n completions.
            sampling: the sampling distribution.
            seed: the seed of the run.
            step: the optimizer step for which the skipped layers were drawn.
            skipped: the indices of the skipped layers.
            batch_size: the largest number of completions sampled at once, which bounds memory; None means all.
            rows: the index of each prompt among the prompts of all processes; None means 0, 1, 2, ...
            on_finished: called with the number of completions that have just ended.

        Returns:
            The completions, each up to and including its first EOS token, and log mu(a_t) of their tokens in nats.
        """
        # 1. Provide the memory and, for a copy in another type, the current weights.
        positions = self.ensure_buffers(prompt_ids, sampling, batch_size)
        if self.model is not self.source:
            self.sync_weights()
        interval = self.eos_check_interval(sampling)
        batch = BatchRows(prompt_ids, sampling, positions, interval)
        rows = [*(range(len(prompt_ids)) if rows is None else rows), 0]  # the last is that of idle rows
        uniforms = self.uniforms(seed, step, rows, batch.output_size[1], sampling)
        with self.layers_replaced(skipped):
            while not batch.is_done:
                # 2. Give each free row a waiting prompt, and prefill these prompts.
                if free := batch.admit():
                    self.prefill(batch.prompts_of(free), free)
                # 3. Decode until rows are next checked for EOS.
                for _ in range(interval):
                    logits = self.decode_step(batch.last_tokens)
                    batch.advance(*sample_tokens(logits, uniforms[batch.next_token], sampling))
                # 4. Free the rows whose completion has ended.
                on_finished(batch.retire())
        return batch.completions()

    @contextmanager
    def layers_replaced(self, skipped: Sequence[int]) -> Iterator[None]:
        """Skip some layers, and run the compiled decode steps of the others, for the duration of one roll-out."""
        compiled = self.compiled_layers.installed(skipped) if self.compiled_layers else nullcontext()
        with nested(self.model, skipped), compiled:
            yield

    def ensure_buffers(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingParams, batch_size: int | None = None
    ) -> CachePositions:
        """Return the write positions of KV buffers that are large enough, those of the last roll-out if possible."""
        batch_size = min(batch_size or len(prompt_ids), len(prompt_ids))
        num_columns = max(map(len, prompt_ids)) + sampling.max_new_tokens
        # A row decodes beyond its longest completion until it is next checked for EOS.
        num_columns += -sampling.max_new_tokens % self.eos_check_interval(sampling)
        # Allocate one block more than attention ever reads: the compiler treats `end == size` as a special case and
        # would need a second program.
        num_columns = self.round_up(num_columns) + self.round_up(1)
        positions = self.positions
        if positions is None or positions.batch_size != batch_size or positions.num_columns < num_columns:
            if positions is not None and positions.batch_size == batch_size:
                # Grow geometrically, so that growing prompts cause few reallocations.
                num_columns = self.round_up(max(num_columns, positions.num_columns * 3 // 2))
            self.cache = self.compiled_layers = None  # frees the old buffers before new ones are allocated
            self.positions = positions = CachePositions(batch_size, num_columns, self.model.device)
            self.cache = Cache(layers=[StaticKVLayer(positions) for _ in decoder_layers(self.model)])
            if self.compiled:
                self.compiled_layers = CompiledLayers(self.model, self.cache, positions)
        return positions

    def round_up(self, num_columns: int) -> int:
        """Return a number of columns rounded up to whole blocks."""
        block = COLUMN_BLOCK_ON_GPU if self.model.device.type == "cuda" else COLUMN_BLOCK
        return -(-num_columns // block) * block

    def eos_check_interval(self, sampling: SamplingParams) -> int:
        """Return how many tokens to decode between EOS checks.

        A check synchronizes with the GPU, so there it happens every 16 tokens; fixed-length roll-outs need none.
        """
        return sampling.max_new_tokens if sampling.fixed_length else 16 if self.model.device.type == "cuda" else 1

    @torch.no_grad()
    def sync_weights(self) -> None:
        """Copy the current weights of the model into the copy in another type."""
        torch._foreach_copy_(list(self.model.parameters()), list(self.source.parameters()))

    def uniforms(
        self, seed: int, step: int, rows: Sequence[int], length: int, sampling: SamplingParams
    ) -> torch.Tensor:
        """Return random numbers in [0, 1) for all tokens of completions, float64 (rows, length); 0 if greedy."""
        if sampling.temperature == 0:
            return torch.zeros(1, 1, dtype=torch.float64, device=self.model.device).expand(len(rows), length)
        numbers = np.stack([philox_uniforms(seed, step, row, length) for row in rows])
        return torch.from_numpy(numbers).to(self.model.device)

    def prefill(self, prompts: list[tuple[int, ...]], rows: list[int]) -> None:
        """Fill the KV cache of some rows with all but the last token of their prompts; equal prompts are read once."""
        assert self.positions is not None
        distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, distinct)) - 1
        if width == 0:
            return
        device = self.model.device
        # Pad on the right, where causal attention does not see the padding and decoding overwrites it.
        padded = [[*prompt[:-1], *[0] * (width + 1 - len(prompt))] for prompt in distinct]
        input_ids = torch.tensor(padded, device=device)
        self.positions.prefill_rows = PrefillRows(
            torch.tensor(rows, device=device),
            torch.tensor([distinct[prompt] for prompt in prompts], device=device),
        )
        position_ids = torch.arange(width, device=device).expand_as(input_ids)
        self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.positions.prefill_rows = None

    def decode_step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token of each row (B,) and return the logits (B, V) of the token that follows it."""
        assert self.positions is not None
        self.positions.attended_columns = self.round_up(max(self.positions.positions_on_host) + 1)
        output = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.attention_masks(self.positions),
            position_ids=self.positions.positions.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def attention_masks(self, positions: CachePositions) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return the attention mask (B, 1, 1, T), or one for each attention type if the model has several."""
        row_positions = positions.positions.unsqueeze(1)
        columns = positions.column_indices[: positions.attended_columns]
        masks = {"full_attention": columns <= row_positions}  # (B, T)
        if self.sliding_window:
            masks["sliding_attention"] = masks["full_attention"] & (columns > row_positions - self.sliding_window)
        for attention_type, mask in masks.items():
            if self.compiled or self.model.config._attn_implementation == "eager":  # both add the mask to the scores
                mask = torch.where(mask, self.zero, self.least)
            masks[attention_type] = mask[:, None, None]
        return masks if len(self.attention_types) > 1 else masks[next(iter(self.attention_types))]


class BatchRows:
    """The rows of a batch: the completion that each row works on, and the tokens sampled so far.

    Rows are independent of each other: when a completion ends, its row goes to the next waiting prompt.

    Args:
        prompt_ids: the prompts, one per completion.
        sampling: the sampling distribution.
        positions: the write positions of the rows in the KV cache, which follow the rows.
        eos_check_interval: how many tokens are decoded between two calls of `retire`.
    """

    def __init__(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingParams,
        positions: CachePositions,
        eos_check_interval: int,
    ) -> None:
        self.prompt_ids, self.positions = prompt_ids, positions
        self.max_new_tokens, self.eos_check_interval = sampling.max_new_tokens, eos_check_interval
        device = positions.positions.device
        self.eos_token_ids = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=device)
        # Popped from the end: long prompts start first, so that the tail of the queue is short. Equal prompts are
        # neighbors, so that one prefill serves them all.
        self.waiting = sorted(
            range(len(prompt_ids)), key=lambda index: (len(prompt_ids[index]), tuple(prompt_ids[index]), -index)
        )
        # One output row per completion, and an unused one for idle rows. Rows may decode beyond `max_new_tokens`.
        self.output_size = (len(prompt_ids) + 1, sampling.max_new_tokens + eos_check_interval)
        self.tokens = torch.zeros(self.output_size, dtype=torch.long, device=device)
        self.logps = torch.zeros(self.output_size, device=device)
        # The state of each row, (B,). The completions are also listed on the host, to find free rows.
        self.completion_of_row = torch.full((positions.batch_size,), IDLE, device=device)
        self.completion_of_row_on_host = [IDLE] * positions.batch_size
        self.num_sampled = torch.zeros_like(self.completion_of_row)
        self.last_tokens = torch.zeros_like(self.completion_of_row)  # the next decode step reads them

    @property
    def is_done(self) -> bool:
        """Whether all completions have ended."""
        return not self.waiting and all(completion == IDLE for completion in self.completion_of_row_on_host)

    @property
    def next_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The index, into tensors of the output size, of the next token of each row."""
        return self.completion_of_row, self.num_sampled

    def admit(self) -> list[int]:
        """Give each idle row a waiting prompt, as long as there are any; return these rows."""
        idle = [row for row, completion in enumerate(self.completion_of_row_on_host) if completion == IDLE]
        rows = idle[: len(self.waiting)]
        if rows:
            for row in rows:
                self.completion_of_row_on_host[row] = self.waiting.pop()
            device = self.completion_of_row.device
            prompts = self.prompts_of(rows)
            # The last token of a prompt is not prefilled: it is what the first decode step reads.
            self.positions.start(rows, [len(prompt) - 1 for prompt in prompts])
            self.last_tokens[rows] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
            self.completion_of_row = torch.tensor(self.completion_of_row_on_host, device=device)
            self.num_sampled[rows] = 0
        return rows

    def prompts_of(self, rows: list[int]) -> list[tuple[int, ...]]:
        """Return the prompts that some rows work on."""
        return [tuple(self.prompt_ids[self.completion_of_row_on_host[row]]) for row in rows]

    def advance(self, tokens: torch.Tensor, logps: torch.Tensor) -> None:
        """Append one of the tokens (B,) and its log-prob, from `logps` (B,), to the completion of each row."""
        self.tokens[self.next_token], self.logps[self.next_token] = tokens, logps
        self.last_tokens = tokens
        self.num_sampled += 1
        self.positions.advance()

    def retire(self) -> int:
        """Make the rows idle whose completion has ended, by its length or an EOS token; return how many ended."""
        recent_columns = self.num_sampled.unsqueeze(1) - torch.arange(
            1, self.eos_check_interval + 1, device=self.num_sampled.device
        )
        recent = self.tokens[self.completion_of_row].gather(1, recent_columns)  # (B, interval), since the last check
        ended = (self.num_sampled >= self.max_new_tokens) | torch.isin(recent, self.eos_token_ids).any(dim=1)
        rows = [row for row, has_ended in enumerate(ended.tolist()) if has_ended]  # idle rows too: they start again
        num_finished = sum(self.completion_of_row_on_host[row] != IDLE for row in rows)
        for row in rows:
            self.completion_of_row_on_host[row] = IDLE
        self.completion_of_row = self.completion_of_row.masked_fill(ended, IDLE)
        self.num_sampled.masked_fill_(ended, 0)
        self.positions.reset(ended, rows)
        return num_finished

    def completions(self) -> tuple[list[list[int]], list[list[float]]]:
        """Return the tokens of all completions, up to and including their first EOS token, and their log-probs."""
        used = (slice(len(self.prompt_ids)), slice(self.max_new_tokens))  # without the output row of idle rows
        return truncate_after_eos(self.tokens[used], self.logps[used], self.eos_token_ids)


def clone_in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model of the same architecture and adapters whose weights are of another type and not yet set."""
    with torch.device("meta"):
        clone = type(model)(model.config)
        for name, config in getattr(model, "peft_config", {}).items():
            from peft import inject_adapter_in_model  # bench/gpu.py samples where peft is not installed

            inject_adapter_in_model(config, clone, name)
    clone = clone.to(dtype).to_empty(device=model.device).eval()
    clone.tie_weights()
    for name, buffer in model.named_buffers():  # rotary frequencies, for example, keep their precision
        module, _, attribute = name.rpartition(".")
        setattr(clone.get_submodule(module), attribute, buffer)
    return clone.requires_grad_(False)
