"""The speed of roll-outs: the engine against `generate`, and what skipped layers, masks and copies change.

All completions have the same length, so that all variants draw the same number of tokens; what the tokens are does
not matter for speed, and neither do weights. So the paper's models are measured by their shapes, with random weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nested_reft.bench.harness import (
    environment_info,
    peak_memory,
    quartiles,
    run_interleaved,
    seconds,
    speed_up,
    summarize,
)
from nested_reft.config.sections import PACKAGE, ModelSource
from nested_reft.config.study import check_skip_ratios
from nested_reft.errors import NestingError, UserError
from nested_reft.model.checks import check_structure
from nested_reft.model.layers import decoder_layers, nested, parameter_counts, skippable_layers
from nested_reft.model.loading import end_token_ids, load_model
from nested_reft.nesting import bounds, draw_skipped_layers, num_skipped
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.sampling import SamplingParams
from nested_reft.rollout.self_check import logprob_errors, unsupported_reason

# Qwen2.5-Math-1.5B and -7B.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
BORDER = 1


@dataclass(frozen=True)
class Settings:
    """What is measured; lengths in tokens."""

    model: str  # a folder, embedded/<name> or one of SHAPES
    skip_ratios: list[float] = field(default_factory=lambda: [0.05, 0.10, 0.15])
    prompts: int = 4
    generations: int = 8
    prompt_length: int = 32
    new_tokens: int = 64  # 2 at least: the first is drawn together with reading the prompt
    dtype: str = "float32"
    sampler: str = "engine-compiled"
    pairs: int = 20


def bench_device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(shape: dict[str, Any], dtype: str, device: torch.device) -> PreTrainedModel:
    """Return a Qwen2 model of this shape with random weights, built where and as it is used."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            return Qwen2ForCausalLM(Qwen2Config(**shape)).eval()
    finally:
        torch.set_default_dtype(before)


def load(name: str, dtype: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model to measure and a tokenizer; that of an embedded model for random weights.

    Raises:
        UserError: if there is no such model here.
    """
    if name in SHAPES:
        return random_model(SHAPES[name], dtype, device), AutoTokenizer.from_pretrained(PACKAGE / "embedded/tiny-28")
    try:
        path = ModelSource(path=name).local_path
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"model {name!r} {message}") from None
    if path is None:
        raise UserError(f"model {name!r} is not here; give a folder, embedded/<name>, or one of {', '.join(SHAPES)}")
    model, tokenizer = load_model(path, dtype)
    return model.to(device).eval(), tokenizer


def skip_counts(model: PreTrainedModel, skip_ratios: Sequence[float], name: str) -> dict[float, int]:
    """Return how many layers each ratio skips.

    Raises:
        UserError: if the model cannot be nested, or a ratio skips no layer, too many, or as many as another.
    """
    try:
        check_structure(model)
        check_skip_ratios(name, model.config.get_text_config().to_dict(), BORDER, list(skip_ratios))
    except NestingError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"--skip-ratios {error}") from None
    return {ratio: num_skipped(len(decoder_layers(model)), ratio) for ratio in skip_ratios}


class Rollouts:
    """Roll-outs of one model, by number: the same number has the same prompts, whoever samples."""

    def __init__(self, settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings, self.model, self.device = settings, model, model.device
        self.engines: dict[tuple[str, torch.dtype | None], RolloutEngine] = {}
        self.counts = skip_counts(model, settings.skip_ratios, settings.model)
        self.valid_layers = skippable_layers(model, BORDER)
        self.sampling = SamplingParams(
            settings.new_tokens, fixed_length=True, eos_token_ids=end_token_ids(model, tokenizer)
        )
        # what stock TRL 1.16 makes of its arguments, the end token banned by `min_new_tokens`
        self.generation_config = GenerationConfig(
            max_new_tokens=settings.new_tokens,
            min_new_tokens=settings.new_tokens,
            do_sample=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=list(self.sampling.eos_token_ids),
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=None,
            repetition_penalty=1.0,
            cache_implementation=None,
            disable_compile=True,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that a roll-out draws."""
        return self.settings.prompts * self.settings.generations * self.settings.new_tokens

    def prompts(self, index: int) -> list[list[int]]:
        """Return prompts of random tokens, each as often as it has completions."""
        vocabulary = self.model.config.get_text_config().vocab_size
        size = (self.settings.prompts, self.settings.prompt_length)
        drawn = np.random.default_rng(index).integers(vocabulary, size=size).tolist()
        return [prompt for prompt in drawn for _ in range(self.settings.generations)]

    def mask(self, count: int, index: int) -> list[int]:
        """Return the layers that are skipped in roll-out `index`."""
        return draw_skipped_layers(self.valid_layers, count, 0, index)

    def engine(self, sampler: str | None = None, dtype: torch.dtype | None = None) -> RolloutEngine:
        """Return an engine whose log-probs were found to be those of a scoring forward.

        Raises:
            UserError: if they are not, or if the engine does not run.
        """
        sampler = sampler or self.settings.sampler
        if (sampler, dtype) not in self.engines:
            engine = self.engines[sampler, dtype] = RolloutEngine(self.model, sampler == "engine-compiled", dtype)
            if reason := unsupported_reason(engine, self.prompts(0), self.sampling):
                raise UserError(f"the {sampler} engine cannot be measured: {reason}")
        return self.engines[sampler, dtype]

    def by_engine(
        self, engine: RolloutEngine, index: int, skipped: Sequence[int] = (), new_tokens: int | None = None
    ) -> None:
        """Sample with the engine."""
        sampling = self.sampling._replace(max_new_tokens=new_tokens or self.settings.new_tokens)
        engine.sample(self.prompts(index), sampling, seed=0, step=index, skipped=skipped)

    def by_sampler(self, sampler: str, index: int) -> None:
        """Sample with the engine of this name."""
        self.by_engine(self.engine(sampler), index)

    def by_generate(self, index: int) -> None:
        """Sample as stock TRL 1.16 does (`GRPOTrainer._generate_single_turn`): every row is left-padded and read."""
        input_ids = torch.tensor(self.prompts(index), device=self.device)
        with torch.no_grad():
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self.generation_config,
            )
        output[:, input_ids.shape[1] :].tolist()

    def time_engine(self, engine: RolloutEngine, skipped: Sequence[int], index: int) -> tuple[float, float]:
        """Return the seconds of a roll-out, and of its prompts and first token alone."""
        whole, first = (
            seconds(partial(self.by_engine, engine, index, skipped, length), self.device)
            for length in (self.settings.new_tokens, 1)
        )
        return whole, first


def against_generate(rollouts: Rollouts, samplers: Sequence[str], pairs: int) -> dict[str, Any]:
    """Compare engines with `generate`: seconds and tokens per second, and memory."""
    calls: dict[str, Callable[[int], object]] = {"generate": rollouts.by_generate}
    for sampler in samplers:
        calls[sampler] = partial(rollouts.by_sampler, sampler)
    # before the turns, and `generate` first: an engine is built at its first call, and keeps its buffers
    memory = peak_memory({name: partial(call, 0) for name, call in calls.items()}, rollouts.device)

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), rollouts.device)

    measured = run_interleaved({name: partial(measure, name) for name in calls}, pairs)
    summary = summarize(*measured, "generate")
    summary["tokens_per_second"] = {
        name: quartiles(rollouts.num_tokens / np.array(values)) for name, values in measured[1].items()
    }
    return summary | {"peak_memory": memory}


def log_prob_errors(rollouts: Rollouts, num_rows: int = 4) -> dict[str, float]:
    """Return how far the engine's log-probs are from those of a forward over whole sequences, in nats.

    The largest ratio's layers are skipped; each token of some sequences, spread over the batch, is scored.
    """
    skipped, prompts = rollouts.mask(max(rollouts.counts.values()), 0), rollouts.prompts(0)
    completions, logps = rollouts.engine().sample(prompts, rollouts.sampling, seed=0, skipped=skipped)
    rows = range(0, len(prompts), -(-len(prompts) // num_rows))
    with nested(rollouts.model, skipped):
        errors = logprob_errors(
            rollouts.model,
            [prompts[row] for row in rows],
            [completions[row] for row in rows],
            [logps[row] for row in rows],
        )
    return {"mean": float(errors.mean()), "largest": float(errors.max())}


def skip_gain(rollouts: Rollouts) -> dict[str, Any]:
    """Compare roll-outs that skip k layers, other ones in each roll-out, with roll-outs that skip none.

    A decode step is (a roll-out of T tokens - one of 1 token) / (T - 1), which leaves the reading of prompts out.
    """

    def measure(count: int, index: int) -> tuple[float, float]:
        return rollouts.time_engine(rollouts.engine(), rollouts.mask(count, index), index)

    counts = [0, *rollouts.counts.values()]
    orders, samples = run_interleaved(
        {str(count): partial(measure, count) for count in counts}, rollouts.settings.pairs
    )
    whole = {name: [pair[0] for pair in pairs] for name, pairs in samples.items()}
    steps = {name: decode_seconds(pairs, rollouts.settings.new_tokens) for name, pairs in samples.items()}
    num_layers, parameters = len(decoder_layers(rollouts.model)), parameter_counts(rollouts.model)
    rows = []
    for ratio, count in rollouts.counts.items():
        bound, bound_with_lm_head = bounds(num_layers, count, *parameters)
        decode = speed_up(steps["0"], steps[str(count)])
        rows.append(
            {
                "skip_ratio": ratio,
                "num_skipped": count,
                "rollout_speed_up": speed_up(whole["0"], whole[str(count)]),
                "decode_speed_up": decode,
                "bound": bound,
                "bound_with_lm_head": bound_with_lm_head,
                "share_of_bound": share_of_gain(decode, bound),
                "share_of_bound_with_lm_head": share_of_gain(decode, bound_with_lm_head),
            }
        )
    return {
        "num_layers": num_layers,
        "layer_parameters": parameters[0],
        "lm_head_parameters": parameters[1],
        "rows": rows,
        "rollout": summarize(orders, whole, "0"),
        "decode_step": summarize(orders, steps, "0"),
        "first_token": {name: [pair[1] for pair in pairs] for name, pairs in samples.items()},
    }


def share_of_gain(speed_up: Mapping[str, float], bound: float) -> dict[str, float]:
    """Return what part of the gain that a bound allows is reached: 0 at no gain, 1 at the bound."""
    return {name: (value - 1) / (bound - 1) for name, value in speed_up.items()}


def decode_seconds(pairs: Sequence[tuple[float, float]], new_tokens: int) -> list[float]:
    """Return the seconds of a decode step, from those of roll-outs of `new_tokens` and of 1 token."""
    return [(whole - first) / (new_tokens - 1) for whole, first in pairs]


def new_mask(rollouts: Rollouts) -> dict[str, Any]:
    """Compare a new mask for each roll-out with one that stays, at the largest ratio."""
    engine, count = rollouts.engine(), max(rollouts.counts.values())

    def measure(fixed: bool, index: int) -> float:
        skipped = rollouts.mask(count, 0 if fixed else index + 1)
        return seconds(partial(rollouts.by_engine, engine, index, skipped), rollouts.device)

    variants = {"fixed": partial(measure, True), "new": partial(measure, False)}
    return {"num_skipped": count} | summarize(*run_interleaved(variants, rollouts.settings.pairs), "fixed")


def renewal(rollouts: Rollouts) -> dict[str, Any]:
    """Compare roll-outs from float32 weights with ones from a bfloat16 copy, with and without renewing it."""
    weights, copy = rollouts.engine(), rollouts.engine(dtype=torch.bfloat16)
    renewed_by_nobody = RolloutEngine(copy.model, copy.compiled)
    calls: dict[str, Callable[[int], object]] = {
        "float32": partial(rollouts.by_engine, weights),
        "copy, renewed": partial(rollouts.by_engine, copy),
        "copy, not renewed": partial(rollouts.by_engine, renewed_by_nobody),
        "renewal alone": lambda index: copy.sync_weights(),
    }

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), rollouts.device)

    variants = {name: partial(measure, name) for name in calls}
    return summarize(*run_interleaved(variants, rollouts.settings.pairs), "float32")


def traffic(model: PreTrainedModel, num_rows: int, num_columns: float, count: int) -> dict[str, float]:
    """Return the bytes that a decode step has to read.

    Args:
        model: the model.
        num_rows: B, the sequences.
        num_columns: tokens of each that are in the cache, in the mean over steps.
        count: k, the layers that are skipped.
    """
    config, size = model.config.get_text_config(), model.dtype.itemsize
    active = len(decoder_layers(model)) - count
    of_layer, lm_head = parameter_counts(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_token = 2 * config.num_key_value_heads * head_dim  # keys and values
    return {
        "weights": float((active * of_layer + lm_head) * size),
        "keys_and_values": float(active * num_rows * num_columns * of_token * size),
    }


def copy_bandwidth(device: torch.device, num_bytes: int = 2**30, repeats: int = 10) -> float:
    """Return the bytes that a large copy on the device reads and writes in a second, in the median."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    target.copy_(source)
    return 2 * num_bytes / float(np.median([seconds(lambda: target.copy_(source), device) for _ in range(repeats)]))


def bandwidth_bound(rollouts: Rollouts, skip: dict[str, Any], bytes_per_second: float) -> dict[str, Any]:
    """Return how long a decode step takes at least, from what it reads, and the share of that speed that is reached.

    Args:
        rollouts: what was measured.
        skip: its `skip_gain`.
        bytes_per_second: of memory.
    """
    settings = rollouts.settings
    columns = settings.prompt_length + settings.new_tokens / 2
    rows = []
    for name, measured in skip["decode_step"]["quartiles"].items():
        read = traffic(rollouts.model, settings.prompts * settings.generations, columns, int(name))
        least = sum(read.values()) / bytes_per_second
        rows.append(
            {
                "num_skipped": int(name),
                "bytes": read,
                "seconds_at_least": least,
                "seconds": measured["median"],
                "share_reached": least / measured["median"],
            }
        )
    return {"copy_bytes_per_second": bytes_per_second, "rows": rows}


def measure_rollout(settings: Settings) -> dict[str, Any]:
    """Measure all that `bench rollout` tells of a model.

    Raises:
        UserError: for a model or ratios that cannot be measured.
    """
    device = bench_device()
    rollouts = Rollouts(settings, *load(settings.model, settings.dtype, device))
    results = {"bench": "rollout", "settings": asdict(settings), **environment_info(device)}
    results["generate"] = against_generate(rollouts, [settings.sampler], settings.pairs)
    results["skip"] = skip_gain(rollouts)
    results["mask"] = new_mask(rollouts)
    results["renewal"] = renewal(rollouts) if settings.dtype == "float32" else None
    results["bandwidth"] = None  # caches make it no bound on a CPU
    if device.type == "cuda":
        results["bandwidth"] = bandwidth_bound(rollouts, results["skip"], copy_bandwidth(device))
    return results
