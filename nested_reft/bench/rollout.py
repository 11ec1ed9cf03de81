"""The speed of roll-outs: the engine against `generate`, and the effects of skipped layers and of weight copies.

All completions have the same length, so all variants sample the same number of tokens. Speed depends neither on which
tokens these are nor on the weights, so the paper's models are measured by their shapes, with random weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nested_reft import embedded
from nested_reft.bench.harness import (
    environment_info,
    peak_memory,
    quartiles,
    run_interleaved,
    seconds,
    speed_up,
    summarize,
)
from nested_reft.errors import NestingError, UserError
from nested_reft.model.checks import check_structure
from nested_reft.model.layers import decoder_layers, nested, parameter_counts, skippable_layers
from nested_reft.model.loading import end_token_ids, load_model
from nested_reft.model.shape import BENCH_SHAPES
from nested_reft.nesting import bounds, draw_skipped_layers, num_skipped
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.self_check import logprob_errors, unsupported_reason
from nested_reft.rollout.token_sampling import SamplingParams

# Qwen2.5-Math-1.5B and -7B.
MODEL_SHAPES: dict[str, dict[str, Any]] = {name: dict(shape) for name, shape in BENCH_SHAPES.items()}
BORDER = 1
EMBEDDED = Path(embedded.__file__).parent
T = TypeVar("T")


@dataclass(frozen=True)
class RolloutBenchSettings:
    """The settings of `bench rollout` and `bench train`; lengths in tokens."""

    model: str  # a folder, embedded/<name> or one of MODEL_SHAPES
    skip_ratios: list[float] = field(default_factory=lambda: [0.05, 0.10, 0.15])
    prompts: int = 4
    generations: int = 8
    prompt_length: int = 32
    new_tokens: int = 64  # at least 2, because the time of a decode step excludes the first token
    dtype: str = "float32"
    sampler: str = "engine-compiled"
    rounds: int = 20
    micro_batch: int = 16  # completions at most, in an update


def bench_device() -> torch.device:
    """Return the device that is measured: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(shape: dict[str, Any], dtype: str, device: torch.device) -> PreTrainedModel:
    """Return a Qwen2 model of this shape with random weights, built on its device and in its type."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            return Qwen2ForCausalLM(Qwen2Config(**shape)).eval()
    finally:
        torch.set_default_dtype(before)


def load(name: str, dtype: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model to measure and its tokenizer; for random weights, the tokenizer of an embedded model.

    Raises:
        UserError: if this machine has no such model.
    """
    if name in MODEL_SHAPES:
        return random_model(MODEL_SHAPES[name], dtype, device), AutoTokenizer.from_pretrained(EMBEDDED / "tiny-28")
    from nested_reft.model.describe import find_source

    path = find_source(name, f"model {name!r}").local_path
    if path is None:
        raise UserError(
            f"model {name!r} is not here; give a folder, embedded/<name>, or one of {', '.join(MODEL_SHAPES)}"
        )
    model, tokenizer = load_model(path, dtype)
    return model.to(device).eval(), tokenizer


def skip_counts(model: PreTrainedModel, skip_ratios: Sequence[float], name: str) -> dict[float, int]:
    """Return how many layers each ratio skips, by ratio, after checking that they can be measured.

    Raises:
        UserError: if the model cannot be nested, or a ratio skips no layer, too many, or as many as another.
    """
    from nested_reft.config.study import check_skip_ratios

    try:
        check_structure(model)
        check_skip_ratios(name, model.config.get_text_config().to_dict(), BORDER, list(skip_ratios))
    except NestingError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"--skip-ratios {error}") from None
    return {ratio: num_skipped(len(decoder_layers(model)), ratio) for ratio in skip_ratios}


def generation_config(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int], new_tokens: int
) -> GenerationConfig:
    """Return the settings that stock TRL 1.16 passes to `generate`, for completions of exactly `new_tokens` tokens."""
    return GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,  # bans EOS
        do_sample=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(eos_token_ids),
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        cache_implementation=None,
        disable_compile=True,
    )


class Rollouts:
    """Roll-outs of one model, by index: the prompts are a function of the index, whichever sampler is used.

    Args:
        settings: the settings of the measurement.
        model: the model.
        tokenizer: the tokenizer of the model.
        counts: the number of layers that each skip ratio skips, by ratio.
    """

    def __init__(
        self,
        settings: RolloutBenchSettings,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        counts: Mapping[float, int],
    ) -> None:
        self.settings, self.model, self.device = settings, model, model.device
        self.engines: dict[tuple[str, torch.dtype | None], RolloutEngine] = {}
        self.counts = dict(counts)
        self.valid_layers = skippable_layers(model, BORDER)
        self.sampling = SamplingParams(
            settings.new_tokens, fixed_length=True, eos_token_ids=end_token_ids(model, tokenizer)
        )
        self.generation_config = generation_config(tokenizer, self.sampling.eos_token_ids, settings.new_tokens)

    @property
    def num_tokens(self) -> int:
        """The number of tokens that a roll-out samples."""
        return self.settings.prompts * self.settings.generations * self.settings.new_tokens

    def prompts(self, index: int) -> list[list[int]]:
        """Return prompts of random tokens, each repeated for each of its completions."""
        vocabulary = self.model.config.get_text_config().vocab_size
        size = (self.settings.prompts, self.settings.prompt_length)
        random_prompts = np.random.default_rng(index).integers(vocabulary, size=size).tolist()
        return [prompt for prompt in random_prompts for _ in range(self.settings.generations)]

    def skipped_layers(self, count: int, index: int) -> list[int]:
        """Return the layers that roll-out `index` skips, `count` of them."""
        return draw_skipped_layers(self.valid_layers, count, 0, index)

    def engine(self, sampler: str | None = None, dtype: torch.dtype | None = None) -> RolloutEngine:
        """Return an engine that was checked on this model; built at the first call.

        Raises:
            UserError: if the engine does not support the model.
        """
        sampler = sampler or self.settings.sampler
        if (sampler, dtype) not in self.engines:
            engine = RolloutEngine(self.model, sampler == "engine-compiled", dtype)
            skipped = self.skipped_layers(max(self.counts.values()), 0)
            if reason := unsupported_reason(engine, self.prompts(0), self.sampling, skipped=skipped):
                raise UserError(f"the {sampler} engine cannot be measured: {reason}")
            self.engines[sampler, dtype] = engine
        return self.engines[sampler, dtype]

    def by_engine(
        self, engine: RolloutEngine, index: int, skipped: Sequence[int] = (), new_tokens: int | None = None
    ) -> None:
        """Sample roll-out `index` with this engine."""
        sampling = self.sampling._replace(max_new_tokens=new_tokens or self.settings.new_tokens)
        engine.sample(self.prompts(index), sampling, seed=0, step=index, skipped=skipped)

    def by_sampler(self, sampler: str, index: int) -> None:
        """Sample roll-out `index` with the engine of this name."""
        self.by_engine(self.engine(sampler), index)

    def by_generate(self, index: int) -> None:
        """Sample as stock TRL 1.16 does (`GRPOTrainer._generate_single_turn`): every row is prefilled."""
        input_ids = torch.tensor(self.prompts(index), device=self.device)
        with torch.no_grad():
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self.generation_config,
            )
        output[:, input_ids.shape[1] :].tolist()

    def time_engine(self, engine: RolloutEngine, skipped: Sequence[int], index: int) -> tuple[float, float]:
        """Return the seconds of a roll-out, and the seconds of the same roll-out with one new token."""
        whole, first = (
            seconds(partial(self.by_engine, engine, index, skipped, length), self.device)
            for length in (self.settings.new_tokens, 1)
        )
        return whole, first


def against_generate(rollouts: Rollouts, samplers: Sequence[str], rounds: int) -> dict[str, Any]:
    """Compare engines with `generate`: seconds and tokens per second, and memory."""
    calls: dict[str, Callable[[int], object]] = {"generate": rollouts.by_generate}
    for sampler in samplers:
        calls[sampler] = partial(rollouts.by_sampler, sampler)
    # Before the rounds, with `generate` first: an engine is built at its first call and then keeps its buffers.
    memory = peak_memory({name: partial(call, 0) for name, call in calls.items()}, rollouts.device)

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), rollouts.device)

    measured = run_interleaved({name: partial(measure, name) for name in calls}, rounds)
    summary = summarize(*measured, "generate")
    summary["tokens_per_second"] = {
        name: quartiles(rollouts.num_tokens / np.array(values)) for name, values in measured[1].items()
    }
    return summary | {"peak_memory": memory}


def log_prob_errors(rollouts: Rollouts, num_rows: int = 4) -> dict[str, float]:
    """Return the differences in nats of the engine's log-probs from those of a forward over whole sequences.

    The number of skipped layers is the largest that is measured. All tokens of `num_rows` sequences, spread over the
    batch, are compared.
    """
    skipped, prompts = rollouts.skipped_layers(max(rollouts.counts.values()), 0), rollouts.prompts(0)
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
    """Compare roll-outs that skip k layers, another set in each roll-out, with roll-outs that skip none.

    The time of a decode step is (a roll-out of T tokens - one of 1 token) / (T - 1), which excludes the prefill.
    """

    def measure(count: int, index: int) -> tuple[float, float]:
        return rollouts.time_engine(rollouts.engine(), rollouts.skipped_layers(count, index), index)

    counts = [0, *rollouts.counts.values()]
    orders, samples = run_interleaved(
        {str(count): partial(measure, count) for count in counts}, rollouts.settings.rounds
    )
    whole = {name: [whole_s for whole_s, _ in times] for name, times in samples.items()}
    steps = {name: decode_seconds(times, rollouts.settings.new_tokens) for name, times in samples.items()}
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
        "first_token": {name: [first_s for _, first_s in times] for name, times in samples.items()},
    }


def share_of_gain(speed_up: Mapping[str, float], bound: float) -> dict[str, float]:
    """Return the gain as a share of the largest possible gain: 0 for no gain, 1 at the bound."""
    return {name: (value - 1) / (bound - 1) for name, value in speed_up.items()}


def decode_seconds(times: Sequence[tuple[float, float]], new_tokens: int) -> list[float]:
    """Return the seconds of a decode step, from the (`new_tokens`, 1 token) times of roll-outs."""
    return [(whole - first) / (new_tokens - 1) for whole, first in times]


def new_skip_set(rollouts: Rollouts) -> dict[str, Any]:
    """Compare another set of skipped layers in each roll-out with a fixed set, at the largest ratio."""
    engine, count = rollouts.engine(), max(rollouts.counts.values())

    def measure(fixed: bool, index: int) -> float:
        skipped = rollouts.skipped_layers(count, 0 if fixed else index + 1)
        return seconds(partial(rollouts.by_engine, engine, index, skipped), rollouts.device)

    variants = {"fixed": partial(measure, True), "new": partial(measure, False)}
    return {"num_skipped": count} | summarize(*run_interleaved(variants, rollouts.settings.rounds), "fixed")


def weight_copy(rollouts: Rollouts) -> dict[str, Any]:
    """Compare roll-outs from float32 weights with roll-outs from a bfloat16 copy, synchronized each time or never.

    `generate` runs in the same rounds, so that the copy is compared with it, too.
    """
    weights, copy = rollouts.engine(), rollouts.engine(dtype=torch.bfloat16)
    never_synchronized = RolloutEngine(copy.model, copy.compiled)
    calls: dict[str, Callable[[int], object]] = {
        "float32": partial(rollouts.by_engine, weights),
        "copy, synchronized": partial(rollouts.by_engine, copy),
        "copy, not synchronized": partial(rollouts.by_engine, never_synchronized),
        "synchronization alone": lambda index: copy.sync_weights(),
        "generate": rollouts.by_generate,
    }

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), rollouts.device)

    variants = {name: partial(measure, name) for name in calls}
    orders, samples = run_interleaved(variants, rollouts.settings.rounds)
    over_generate = speed_up(samples["generate"], samples["copy, synchronized"])
    return summarize(orders, samples, "float32") | {"copy_over_generate": over_generate}


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median duration of a call, after a first one that is not counted."""
    call()
    return float(np.median([seconds(call, device) for _ in range(repeats)]))


def square_flops(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Return the floating-point operations per second of a product of square matrices.

    They have 2048 rows, or as many as a tenth of a second allows: a CPU without instructions for bfloat16 is a hundred
    times as slow in this type.
    """
    for rows in (256, 512, 1024, 2048):
        square = torch.randn(rows, rows, device=device, dtype=dtype)
        taken = median_seconds(partial(torch.matmul, square, square), device, 1)
        if taken > 0.1:
            break
    return 2 * rows**3 / median_seconds(partial(torch.matmul, square, square), device, repeats)


def matrix_products(rollouts: Rollouts, dtype: torch.dtype, repeats: int = 10) -> dict[str, float]:
    """Measure the matrix products of a decode step alone, as torch computes them one after the other.

    Args:
        rollouts: the roll-outs, whose batch the inputs of the products have.
        dtype: the type of weights and inputs.
        repeats: how often the products of a step are timed.

    Returns:
        `seconds` of all products of a step, the median over the repeats, `flops` per second that they reach, and
        those that a product of square matrices reaches, `square_flops`.
    """
    size, device = rollouts.settings.prompts * rollouts.settings.generations, rollouts.device
    modules = [*decoder_layers(rollouts.model).modules(), rollouts.model.get_output_embeddings()]
    weights = [module.weight.detach().to(dtype) for module in modules if isinstance(module, torch.nn.Linear)]
    inputs = {weight.shape[1]: torch.randn(size, weight.shape[1], device=device, dtype=dtype) for weight in weights}

    def multiply() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    step = median_seconds(multiply, device, repeats)
    flops = 2 * size * sum(weight.numel() for weight in weights)
    return {
        "seconds": step,
        "flops": flops / step,
        "square_flops": square_flops(device, dtype, repeats),
    }


def shares_of_products(rollouts: Rollouts, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `products` of each type, and the `share_of_products` of each sampler.

    The share is the time that the matrix products of all decode steps take alone over the time of the roll-out.

    Args:
        rollouts: the roll-outs.
        results: the results of `against_generate` and of `weight_copy`, or None in place of the latter.
    """
    settings, copied = rollouts.settings, results["weight_copy"]
    types = [settings.dtype, *(["bfloat16"] if copied else [])]
    products = {name: matrix_products(rollouts, getattr(torch, name)) for name in types}
    measured = {name: (settings.dtype, times["median"]) for name, times in results["generate"]["quartiles"].items()}
    if copied:
        name = f"{settings.sampler}, bfloat16 copy"
        measured[name] = ("bfloat16", copied["quartiles"]["copy, synchronized"]["median"])
    shares = {
        name: products[dtype]["seconds"] * settings.new_tokens / total for name, (dtype, total) in measured.items()
    }
    return {"products": products, "share_of_products": shares}


def bytes_read(model: PreTrainedModel, batch_size: int, num_columns: float, count: int) -> dict[str, float]:
    """Return the bytes that a decode step has to read.

    Args:
        model: the model.
        batch_size: B, the number of sequences.
        num_columns: the tokens of each sequence in the KV cache, on average over the steps.
        count: k, the number of skipped layers.
    """
    config, size = model.config.get_text_config(), model.dtype.itemsize
    active = len(decoder_layers(model)) - count
    per_layer, lm_head = parameter_counts(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_key_value_heads * head_dim  # keys and values
    return {
        "weights": float((active * per_layer + lm_head) * size),
        "keys_and_values": float(active * batch_size * num_columns * per_token * size),
    }


def copy_bandwidth(device: torch.device, num_bytes: int = 2**30, repeats: int = 10) -> float:
    """Return the bytes per second that a large copy on the device reads and writes, median over repeats."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    target.copy_(source)
    return 2 * num_bytes / float(np.median([seconds(lambda: target.copy_(source), device) for _ in range(repeats)]))


def bandwidth_bound(rollouts: Rollouts, skip: dict[str, Any], bytes_per_second: float) -> dict[str, Any]:
    """Return the least time in which a decode step can read its bytes, and the share of that speed that is reached.

    Args:
        rollouts: the measured roll-outs.
        skip: the result of `skip_gain` for them.
        bytes_per_second: the memory bandwidth.
    """
    settings = rollouts.settings
    columns = settings.prompt_length + settings.new_tokens / 2
    rows = []
    for name, measured in skip["decode_step"]["quartiles"].items():
        read = bytes_read(rollouts.model, settings.prompts * settings.generations, columns, int(name))
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


def measure_rollout(settings: RolloutBenchSettings) -> dict[str, Any]:
    """Measure the roll-outs of a model: all parts of `bench rollout`.

    Raises:
        UserError: for a model or skip ratios that cannot be measured.
    """
    device = bench_device()
    model, tokenizer = load(settings.model, settings.dtype, device)
    rollouts = Rollouts(settings, model, tokenizer, skip_counts(model, settings.skip_ratios, settings.model))
    results: dict[str, Any] = {"bench": "rollout", "settings": asdict(settings), **environment_info(device)}
    left_out: dict[str, str] = {}

    def part(name: str, measure: Callable[[], T]) -> T | None:
        """Return the result of a part, or None if it cannot be measured, which is noted."""
        try:
            return measure()
        except UserError as error:
            left_out[name] = str(error)
            return None

    has_engine = part("everything but `generate`", rollouts.engine) is not None
    results["generate"] = against_generate(rollouts, [settings.sampler] if has_engine else [], settings.rounds)
    results |= dict.fromkeys(("skip", "new_skip_set", "weight_copy", "products", "share_of_products", "bandwidth"))
    if has_engine:
        results["skip"], results["new_skip_set"] = skip_gain(rollouts), new_skip_set(rollouts)
        if settings.dtype == "float32":
            results["weight_copy"] = part("a bfloat16 copy of the weights", lambda: weight_copy(rollouts))
        results |= shares_of_products(rollouts, results)
        if device.type == "cuda":  # on a CPU, caches make this bound invalid
            results["bandwidth"] = bandwidth_bound(rollouts, results["skip"], copy_bandwidth(device))
    return results | {"left_out": left_out}
