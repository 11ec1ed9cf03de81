"""The roll-out engine: batches of completions from a decoder-only model, some of its layers skipped.

transformers' `generate` reads a prompt once per completion, allocates as it goes and draws from one global
random state. Here the model's own forward runs over static memory:

- a prompt is read once, however many completions share it;
- keys and values lie in buffers that are allocated once and reused, one for each layer that ever ran;
- a row writes at its own position, so that a finished row's place is taken by the next prompt;
- log mu(a_t) is taken from the logits that a_t is drawn from: no second pass, nothing of size (B, T, V);
- a row's random numbers are a function of (seed, step, row), whatever the batch is split into.

As it stands it is plain PyTorch, the reference path; with `compiled` the steps of layers are compiled pieces
(`compiled.py`). `rollout.py` chooses between them and `generate`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

from nested_reft.model.layers import decoder_layers, language_model, nested
from nested_reft.rollout.compiled import Pieces
from nested_reft.rollout.kv_cache import Place, RowsLayer
from nested_reft.rollout.sampling import Sampling, draw, philox_uniforms, truncate_after_eos

# Buffers, and the part of them that attention reads, grow by so many columns at a time. On a GPU more, since each
# size has its own CUDA graph.
COLUMNS, COLUMNS_OF_GPU = 16, 64


def copy_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model of the same build with room for its weights in another type."""
    with torch.device("meta"):
        twin = type(model)(model.config)
    twin = twin.to(dtype).to_empty(device=model.device).eval()
    twin.tie_weights()
    for name, buffer in model.named_buffers():  # such as rotary frequencies, which stay as precise as they are
        module, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(module), attribute, buffer)
    return twin.requires_grad_(False)


class RolloutEngine:
    """Samples completions from a model over memory that it keeps.

    Args:
        model: a decoder-only language model to which `unsupported_reason` has no objection.
        compiled: whether the steps of layers are compiled pieces (`compiled.py`).
        dtype: of a copy of the weights to sample from, renewed before each roll-out; None takes the weights.
    """

    def __init__(self, model: PreTrainedModel, compiled: bool = False, dtype: torch.dtype | None = None) -> None:
        self.source = language_model(model)
        self.model = self.source if dtype in (None, self.source.dtype) else copy_in(self.source, dtype)
        self.compiled = compiled
        self.place: Place | None = None
        self.cache: Cache | None = None
        self.pieces: Pieces | None = None
        self.zero = torch.zeros((), dtype=self.model.dtype, device=self.model.device)
        self.least = torch.full_like(self.zero, torch.finfo(self.model.dtype).min)
        config = self.model.config.get_text_config()
        self.sliding_window = getattr(config, "sliding_window", None)
        # Where a config does not tell layers apart, all of them slide or none does.
        of_all = "sliding_attention" if self.sliding_window else "full_attention"
        self.attention_types = set(getattr(config, "layer_types", None) or [of_all])

    def round_up(self, size: int) -> int:
        """Return the number of columns to provide for `size` tokens."""
        columns = COLUMNS_OF_GPU if self.model.device.type == "cuda" else COLUMNS
        return -(-size // columns) * columns

    def stride(self, sampling: Sampling) -> int:
        """Return after how many tokens it is looked whether rows have ended.

        Reading a flag from a GPU waits for it, so there it is done once in a while; a fixed length needs none.
        """
        return sampling.max_new_tokens if sampling.fixed_length else 16 if self.model.device.type == "cuda" else 1

    def provide(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, num_rows: int | None = None) -> Place:
        """Return buffers that such a roll-out needs, those of the last one if they are large enough."""
        num_rows = min(num_rows or len(prompt_ids), len(prompt_ids))
        num_columns = max(map(len, prompt_ids)) + sampling.max_new_tokens
        num_columns += -sampling.max_new_tokens % self.stride(sampling)  # rows may run on until it is looked
        # More than is ever read: a compiler would take the case that all of a buffer is for another one.
        num_columns = self.round_up(num_columns) + self.round_up(1)
        if self.place is None or self.place.num_rows != num_rows or self.place.num_columns < num_columns:
            if self.place is not None and self.place.num_rows == num_rows:  # by steps that soon suffice
                num_columns = self.round_up(max(num_columns, self.place.num_columns * 3 // 2))
            self.cache = self.pieces = None  # let go of the old buffers first
            self.place = Place(num_rows, num_columns, self.model.device)
            self.columns = torch.arange(self.place.num_columns, device=self.model.device)
            self.cache = Cache(layers=[RowsLayer(self.place) for _ in decoder_layers(self.model)])
            if self.compiled:
                self.pieces = Pieces(self.model, self.cache, self.place)
        return self.place

    @torch.no_grad()
    def renew(self) -> None:
        """Bring the copy of the weights up to date."""
        torch._foreach_copy_(list(self.model.parameters()), list(self.source.parameters()))

    def read_prompts(self, place: Place, prompts: list[tuple[int, ...]], rows: list[int]) -> None:
        """Put all but the last token of each row's prompt into the cache; equal prompts are read once."""
        distinct = list(dict.fromkeys(prompts))
        width = max(map(len, distinct)) - 1
        if width == 0:
            return
        device = self.model.device
        # Padding stands on the right, where causal attention does not see it and decoding overwrites it.
        input_ids = torch.tensor(
            [[*prompt[:-1], *[0] * (width + 1 - len(prompt))] for prompt in distinct], device=device
        )
        number = {prompt: index for index, prompt in enumerate(distinct)}
        place.prompts_of = (
            torch.tensor(rows, device=device),
            torch.tensor([number[prompt] for prompt in prompts], device=device),
        )
        positions = torch.arange(width, device=device).expand_as(input_ids)
        self.model(
            input_ids=input_ids, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        place.prompts_of = None

    def masks(self, place: Place) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return what each row may attend to, (B, 1, 1, T), by attention type where a model tells types apart."""
        positions = place.positions.unsqueeze(1)
        columns = self.columns[: place.end]
        allowed = {"full_attention": columns <= positions}  # (B, T)
        if self.sliding_window:
            allowed["sliding_attention"] = allowed["full_attention"] & (columns > positions - self.sliding_window)
        for kind, mask in allowed.items():
            if self.compiled or self.model.config._attn_implementation == "eager":  # which add it
                mask = torch.where(mask, self.zero, self.least)
            allowed[kind] = mask[:, None, None]
        return allowed if len(self.attention_types) > 1 else allowed[next(iter(self.attention_types))]

    def next_logits(self, place: Place, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token of each row (B,) and return the logits (B, V) of what follows it."""
        output = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.masks(place),
            position_ids=place.positions.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    @torch.no_grad()
    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        step: int = 0,
        skipped: Sequence[int] = (),
        num_rows: int | None = None,
        first_row: int = 0,
        on_finished: Callable[[int], object] = lambda completions: None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt.

        Args:
            prompt_ids: the prompts, of any lengths; repeat one to have several completions of it.
            sampling: how to draw.
            seed: of the run.
            step: of the run; the mask's.
            skipped: the layers that are skipped.
            num_rows: the most rows of a batch (memory grows with it); all of them by default.
            first_row: the number of the first prompt among those of all processes.
            on_finished: told how many completions have ended, each time some do.

        Returns:
            The completions, each up to and including its first end token, and log mu(a_t) of their tokens.
        """
        device, length, nobody = self.model.device, sampling.max_new_tokens, len(prompt_ids)
        stride = self.stride(sampling)
        place = self.provide(prompt_ids, sampling, num_rows)
        num_rows = place.num_rows
        if self.model is not self.source:
            self.renew()
        eos_token_ids = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=device)
        size = (nobody + 1, length + stride)  # the last row is nobody's
        if sampling.temperature > 0:
            rows = range(first_row, first_row + nobody + 1)
            draws = torch.from_numpy(np.stack([philox_uniforms(seed, step, row, size[1]) for row in rows])).to(device)
        else:
            draws = torch.zeros(1, 1, dtype=torch.float64, device=device).expand(size)
        tokens = torch.zeros(size, dtype=torch.long, device=device)
        logps = torch.zeros(size, device=device)

        # Longest first: what is begun last is soon over. Equal prompts are neighbours, and read together.
        waiting = sorted(range(nobody), key=lambda index: (len(prompt_ids[index]), tuple(prompt_ids[index]), -index))
        owners, columns = [nobody] * num_rows, [0] * num_rows  # what each row works on, and where
        owner = torch.tensor(owners, device=device)
        drawn = torch.zeros_like(owner)  # how many tokens of its completion a row has
        last = torch.zeros_like(owner)  # the token that it reads next
        with nested(self.model, skipped), self.pieces.in_place(skipped) if self.pieces else nullcontext():
            while waiting or min(owners) < nobody:
                free = [row for row in range(num_rows) if owners[row] == nobody][: len(waiting)]
                if free:
                    for row in free:
                        owners[row] = waiting.pop()
                        columns[row] = len(prompt_ids[owners[row]]) - 1
                    prompts = [tuple(prompt_ids[owners[row]]) for row in free]
                    self.read_prompts(place, prompts, free)
                    last[free] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
                    place.positions[free] = torch.tensor([columns[row] for row in free], device=device)
                    owner, drawn[free] = torch.tensor(owners, device=device), 0
                for _ in range(stride):
                    place.end = self.round_up(max(columns) + 1)
                    last, last_logps = draw(self.next_logits(place, last), draws[owner, drawn], sampling)
                    tokens[owner, drawn], logps[owner, drawn] = last, last_logps
                    place.positions += 1
                    drawn += 1
                    columns = [column + 1 for column in columns]
                recent = tokens[owner].gather(1, drawn.unsqueeze(1) - torch.arange(1, stride + 1, device=device))
                ended = (drawn >= length) | torch.isin(recent, eos_token_ids).any(dim=1)
                over = [row for row, is_over in enumerate(ended.tolist()) if is_over]
                on_finished(sum(owners[row] < nobody for row in over))
                for row in over:
                    owners[row], columns[row] = nobody, 0
                owner = owner.masked_fill(ended, nobody)
                place.positions.masked_fill_(ended, 0)
                drawn.masked_fill_(ended, 0)

        return truncate_after_eos(tokens[:nobody, :length], logps[:nobody, :length], eos_token_ids)
