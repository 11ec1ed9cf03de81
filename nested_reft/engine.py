"""The roll-out engine: batches of completions from a decoder-only model, some of its layers skipped.

transformers' `generate` reads a prompt once per completion, allocates as it goes and draws from one global
random state. Here the model's own forward runs over static memory:

- a prompt is read once, however many completions share it;
- keys and values lie in buffers that are allocated once and reused, one for each layer that ever ran;
- a row writes at its own position, so that a finished row's place is taken by the next prompt;
- log mu(a_t) is taken from the logits that a_t is drawn from: no second pass, nothing of size (B, T, V);
- a row's random numbers are a function of (seed, step, row), whatever the batch is split into.

It is the reference path, in plain PyTorch; training and evaluation still sample by `generate` (`rollout.py`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.generation.logits_process import TopPLogitsWarper

from nested_reft.models import decoder_layers, language_model
from nested_reft.nesting import nested

# Buffers, and the part of them that attention reads, grow by so many columns at a time.
COLUMNS = 64


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
    """Keys and values of one layer: row b holds its tokens in columns 0, 1, 2, ... without padding."""

    is_compileable = True
    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on first use; a layer that never runs has no buffers."""
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self.place.num_rows, states.shape[1], self.place.num_columns, states.shape[3])
            setattr(self, name, states.new_zeros(shape))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what is new and return what attention reads, both (B, H, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        if place.prompts_of is not None:
            rows, prompts = place.prompts_of
            self.keys[rows, :, : key_states.shape[2]] = key_states[prompts]
            self.values[rows, :, : value_states.shape[2]] = value_states[prompts]
            return key_states, value_states
        self.keys[place.every_row, :, place.positions] = key_states[:, :, 0]
        self.values[place.every_row, :, place.positions] = value_states[:, :, 0]
        return self.keys[:, :, : place.end], self.values[:, :, : place.end]

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
    logits = logits.float() / (sampling.temperature or 1.0)
    log_probs = logits - logits.logsumexp(dim=-1, keepdim=True)  # (B, V)
    choices = log_probs
    if sampling.fixed_length:
        banned = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=logits.device)
        choices = choices.index_fill(1, banned, -torch.inf)
    if sampling.temperature == 0:
        tokens = choices.argmax(dim=1)
    else:
        if sampling.top_p < 1:
            choices = TopPLogitsWarper(sampling.top_p)(None, choices)
        # Double precision: over 150,000 tokens single precision would misplace what is rarer than 1e-5.
        cumulative = choices.exp().cumsum(dim=1, dtype=torch.float64)
        thresholds = draws.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return tokens, log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)


def round_up(size: int) -> int:
    """Return the number of columns to provide for `size` tokens."""
    return -(-size // COLUMNS) * COLUMNS


class RolloutEngine:
    """Samples completions from a model over memory that it keeps.

    Args:
        model: a decoder-only language model to which `why_not` has no objection.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = language_model(model)
        self.place: Place | None = None
        self.cache: Cache | None = None
        config = self.model.config.get_text_config()
        self.sliding_window = getattr(config, "sliding_window", None)
        # Where a config does not tell layers apart, all of them slide or none does.
        of_all = "sliding_attention" if self.sliding_window else "full_attention"
        self.attention_types = set(getattr(config, "layer_types", None) or [of_all])

    def provide(self, num_rows: int, num_columns: int) -> Place:
        """Return buffers of at least this size, those of the last roll-out if they are large enough."""
        if self.place is None or self.place.num_rows != num_rows or self.place.num_columns < num_columns:
            self.cache = None  # let go of the old buffers first
            self.place = Place(num_rows, round_up(num_columns), self.model.device)
            self.cache = Cache(layers=[RowsLayer(self.place) for _ in decoder_layers(self.model)])
        return self.place

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
        columns = torch.arange(place.end, device=self.model.device)
        positions = place.positions.unsqueeze(1)
        allowed = {"full_attention": columns <= positions}  # (B, T)
        if self.sliding_window:
            allowed["sliding_attention"] = allowed["full_attention"] & (columns > positions - self.sliding_window)
        for kind, mask in allowed.items():
            mask = mask[:, None, None]
            if self.model.config._attn_implementation == "eager":  # which adds it
                mask = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(
                    ~mask, torch.finfo(self.model.dtype).min
                )
            allowed[kind] = mask
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
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt.

        Args:
            prompt_ids: the prompts, of any lengths; repeat one to have several completions of it.
            sampling: how to draw.
            seed: of the run.
            step: of the run; the mask's.
            skipped: the layers that are skipped.
            num_rows: the most rows of a batch (memory grows with it); all of them by default.

        Returns:
            The completions, each up to and including its first end token, and log mu(a_t) of their tokens.
        """
        device, length, nobody = self.model.device, sampling.max_new_tokens, len(prompt_ids)
        num_rows = min(num_rows or nobody, nobody)
        # Reading a flag from a GPU waits for it, so there it is done once in a while; a fixed length needs none.
        stride = length if sampling.fixed_length else 16 if device.type == "cuda" else 1
        place = self.provide(num_rows, max(map(len, prompt_ids)) + length + stride)
        eos_token_ids = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=device)
        draws = np.stack([uniforms(seed, step, row, length + stride) for row in range(nobody + 1)])
        draws = torch.from_numpy(draws).to(device)  # (prompts + 1, length + stride); the last row is nobody's
        tokens = torch.zeros(draws.shape, dtype=torch.long, device=device)
        logps = torch.zeros(draws.shape, device=device)

        # Longest first: what is begun last is soon over. Equal prompts are neighbours, and read together.
        waiting = sorted(range(nobody), key=lambda index: (len(prompt_ids[index]), tuple(prompt_ids[index]), -index))
        owners, columns = [nobody] * num_rows, [0] * num_rows  # what each row works on, and where
        owner = torch.tensor(owners, device=device)
        drawn = torch.zeros_like(owner)  # how many tokens of its completion a row has
        last = torch.zeros_like(owner)  # the token that it reads next
        with nested(self.model, skipped):
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
                    place.end = min(round_up(max(columns) + 1), place.num_columns)
                    last, last_logps = draw(self.next_logits(place, last), draws[owner, drawn], sampling)
                    tokens[owner, drawn], logps[owner, drawn] = last, last_logps
                    place.positions += 1
                    drawn += 1
                    columns = [column + 1 for column in columns]
                recent = tokens[owner].gather(1, drawn.unsqueeze(1) - torch.arange(1, stride + 1, device=device))
                ended = (drawn >= length) | torch.isin(recent, eos_token_ids).any(dim=1)
                for row, over in enumerate(ended.tolist()):
                    if over:
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
def why_not(model: PreTrainedModel) -> str | None:
    """Return why the engine cannot sample from this model, or None: it is tried, on two prompts of any tokens.

    A model is covered if the engine's log-probs are those of a scoring forward.
    """
    engine, name = RolloutEngine(model), type(language_model(model)).__name__
    if unknown := engine.attention_types - {"full_attention", "sliding_attention"}:
        return f"{name} has layers of {', '.join(sorted(unknown))}"
    prompts = [[5, 6, 7, 8], [9]]
    try:
        completions, logps = engine.sample(prompts, Sampling(max_new_tokens=3, temperature=0.0), seed=0)
    except Exception as error:  # whatever a family does differently ends here
        return f"{name} does not run over it ({error})"
    for prompt, completion, sampled in zip(prompts, completions, logps, strict=True):
        tokens = torch.tensor([prompt + completion], device=engine.model.device)
        logits = engine.model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        scored = logits.log_softmax(dim=-1).gather(1, tokens[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        # Rounding is 1e-6 in float32 and some hundredths in bfloat16; another position or mask is more than one.
        if (scored - torch.tensor(sampled, device=scored.device)).abs().max() > 0.3:
            return f"{name} gives other log-probabilities over it"
    return None
