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
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Cache, PreTrainedModel, TopPLogitsWarper
from transformers.cache_utils import CacheLayerMixin

from nested_reft.model.layers import decoder_layers, language_model, skippable_layers
from nested_reft.nesting import nested
from nested_reft.rollout.compiled import Pieces, store_token

# Buffers, and the part of them that attention reads, grow by so many columns at a time. On a GPU more, since each
# size has its own CUDA graph.
COLUMNS, COLUMNS_OF_GPU = 16, 64


class Sampling(NamedTuple):
    """How completions are drawn from softmax(logits / temperature)."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 takes the likeliest token
    top_p: float = 1.0
    fixed_length: bool = False  # the end token is banned, as in the paper; log mu is that of the unbanned softmax
    eos_token_ids: tuple[int, ...] = ()


def uniforms(seed: int, step: int, row: int, size: int) -> np.ndarray:
    """Return numbers in [0, 1), float64 (size,): a function of the arguments alone.

    Philox is a counter-based generator: (seed, step) is its key and the row its counter, so that rows are
    independent of each other and of the batch they are in.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, row])).random(size)


class Place:
    """Where the next tokens go: shared by the cache layers of all model layers.

    Args:
        num_rows: B, the rows of the batch.
        num_columns: the most tokens of a row.
        device: where the buffers are.
    """

    def __init__(self, num_rows: int, num_columns: int, device: torch.device) -> None:
        self.num_rows, self.num_columns = num_rows, num_columns
        self.every_row = torch.arange(num_rows, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.long, device=device)  # (B,), the column of the next token
        self.end = 0  # attention reads columns [0, end)
        # while prompts are read: the rows that are filled, and the prompt of each
        self.prompts_of: tuple[torch.Tensor, torch.Tensor] | None = None


class RowsLayer(CacheLayerMixin):
    """Keys and values of one layer: row b holds its tokens in columns 0, 1, 2, ... without padding.

    Keys lie with their columns innermost, (B, K, D, T): scores of a token are sums over D for all columns at once.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on first use; a layer that never runs has no buffers."""
        rows, columns = self.place.num_rows, self.place.num_columns
        self.keys = key_states.new_zeros((rows, key_states.shape[1], key_states.shape[3], columns))
        self.values = value_states.new_zeros((rows, value_states.shape[1], columns, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what is new and return what attention reads, both (B, K, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        if place.prompts_of is not None:
            rows, prompts = place.prompts_of
            self.keys[rows, :, :, : key_states.shape[2]] = key_states[prompts].transpose(2, 3)
            self.values[rows, :, : value_states.shape[2]] = value_states[prompts]
            return key_states, value_states
        store_token(self.keys, self.values, place.every_row, place.positions, key_states, value_states)
        return self.keys[..., : place.end].transpose(2, 3), self.values[:, :, : place.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys: only a prompt's mask is made by the model."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Return the number of columns."""
        return self.place.num_columns


def draw(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the next tokens by inverting the cumulative distribution.

    Args:
        logits: (B, V).
        draws: uniform numbers (B,).
        sampling: how.

    Returns:
        The tokens (B,), and log mu(a_t) (B,) of the unbanned, unfiltered softmax(logits / temperature).
    """
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    probs = choices = logits.softmax(dim=-1)  # (B, V)
    if sampling.fixed_length:
        banned = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=logits.device)
        choices = choices.index_fill(1, banned, 0)
    if sampling.temperature == 0:
        tokens = choices.argmax(dim=1)
    else:
        if sampling.top_p < 1:
            choices = TopPLogitsWarper(sampling.top_p, filter_value=-torch.inf)(None, choices.log()).exp()
        # Double precision: over 150,000 tokens single precision would misplace what is rarer than 1e-5.
        cumulative = choices.cumsum(dim=1, dtype=torch.float64)
        thresholds = draws.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return tokens, probs.gather(1, tokens.unsqueeze(1)).squeeze(1).log()


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
        model: a decoder-only language model to which `why_not` has no objection.
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
            draws = torch.from_numpy(np.stack([uniforms(seed, step, row, size[1]) for row in rows])).to(device)
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

        return until_end(tokens[:nobody, :length], logps[:nobody, :length], eos_token_ids)


def until_end(
    tokens: torch.Tensor, logps: torch.Tensor, eos_token_ids: torch.Tensor
) -> tuple[list[list[int]], list[list[float]]]:
    """Cut tokens and their log-probs, both (B, T), behind the first end token of each row."""
    is_eos = torch.isin(tokens, eos_token_ids)
    before_end = is_eos.cumsum(dim=1) - is_eos.int()  # ends seen strictly before each token
    lengths = (before_end == 0).sum(dim=1).tolist()
    return (
        [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(logps.tolist(), lengths, strict=True)],
    )


@torch.no_grad()
def scoring_errors(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    logps: Sequence[Sequence[float]],
) -> torch.Tensor:
    """Return how far the log-probs of all tokens are from those of a forward over each whole sequence, in nats."""
    errors = []
    for prompt, completion, sampled in zip(prompt_ids, completions, logps, strict=True):
        tokens = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        scored = logits.log_softmax(dim=-1).gather(1, tokens[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        errors.append((scored.cpu() - torch.tensor(sampled)).abs())
    return torch.cat(errors)


@torch.no_grad()
def why_not(
    engine: RolloutEngine, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, num_rows: int | None = None
) -> str | None:
    """Return why the engine cannot be used for such a roll-out, or None: it draws a few tokens, which are scored.

    A model is covered if the engine's log-probs, with a layer skipped, are those of a forward over the whole sequence.
    """
    name = type(engine.model).__name__
    if unknown := engine.attention_types - {"full_attention", "sliding_attention"}:
        return f"{name} has layers of {', '.join(sorted(unknown))}"
    try:
        num_rows = engine.provide(prompt_ids, sampling, num_rows).num_rows  # what is tried is what will run
        prompt_ids, skipped = prompt_ids[:num_rows], skippable_layers(engine.model, border=1)[:1]
        few = Sampling(max_new_tokens=min(8, sampling.max_new_tokens), fixed_length=True)
        completions, logps = engine.sample(prompt_ids, few, seed=0, skipped=skipped)
    except torch.OutOfMemoryError:  # no property of the model
        raise
    except Exception as error:  # whatever a family does differently ends here
        return f"{name} does not run over it ({type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]})"
    distinct = {tuple(prompt): index for index, prompt in enumerate(prompt_ids)}
    some = list(distinct.values())[:4]
    with nested(engine.model, skipped):
        apart = scoring_errors(
            engine.model,
            [prompt_ids[index] for index in some],
            [completions[index] for index in some],
            [logps[index] for index in some],
        )
    # Rounding is 1e-6 in float32 and about .01 in bfloat16; another position or mask is more than one.
    is_rounding = apart.mean() < 0.05 and apart.max() < 0.5  # and no nan
    return None if is_rounding else f"{name} gives other log-probabilities over it"
