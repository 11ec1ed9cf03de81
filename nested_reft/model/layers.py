"""What nesting has to know of a model: its stack of layers, whether nesting it is sound, what it can gain."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nested_reft.config.sections import ConfigError, ModelSource
from nested_reft.nesting import num_skipped, valid_layers


class NestingError(ValueError):
    """Roll-outs from this nested model would be silently wrong; says why, in one sentence."""


def load_model(path: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer, from safetensors and without running code from the hub."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token_id is None:  # as TRL does
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a completion: those of the model or, where it names none, of the tokenizer."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return tuple(ends) if isinstance(ends, list) else (ends,)


def language_model(model: torch.nn.Module) -> PreTrainedModel:
    """Return transformers' own model inside of whatever wraps it: PEFT, DistributedDataParallel, torch.compile."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """Return the stack of decoder layers, found by its structure and not by its name.

    Raises:
        NestingError: if the model has no plain stack of `num_hidden_layers` layers.
    """
    model = language_model(model)
    num_layers = model.config.get_text_config().num_hidden_layers
    layer_classes = model._no_split_modules or ()
    for module in model.modules():
        is_stack = isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
        if is_stack and all(type(layer).__name__ in layer_classes for layer in module):
            return module
    raise NestingError(
        f"{type(model).__name__} has no plain stack of {num_layers} decoder layers; it cannot be nested"
    )


def skippable_layers(model: torch.nn.Module, border: int) -> list[int]:
    """Return the indices of the model's layers that may be skipped at border b."""
    config = language_model(model).config.get_text_config()
    return valid_layers(config.num_hidden_layers, border, getattr(config, "layer_types", None))


def parameter_counts(model: PreTrainedModel) -> tuple[int, int]:
    """Return the parameters of one layer, in the mean, and of the output projection."""
    layers = decoder_layers(model)
    of_layer = sum(parameter.numel() for parameter in layers.parameters()) // len(layers)
    return of_layer, model.get_output_embeddings().weight.numel()


def layers_return_tuples(model: torch.nn.Module) -> bool:
    """Whether layers return (hidden_states, ...), as Falcon's, or hidden_states; one token tells, once per model."""
    layers = decoder_layers(model)
    if not hasattr(layers, "return_tuples"):
        seen: list[Any] = []
        hook = layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        inner = language_model(model)
        with torch.no_grad():
            inner(input_ids=torch.zeros((1, 1), dtype=torch.long, device=inner.device), use_cache=False)
        hook.remove()
        layers.return_tuples = isinstance(seen[0], tuple)
    return layers.return_tuples


@contextmanager
def forwards(layers: torch.nn.ModuleList, stand_ins: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Exchange the forward of some layers for the duration of the block.

    An instance attribute shadows the class's forward, and with it gradient checkpointing; what was there
    before, such as the hook of a device map, comes back.
    """
    before = {index: vars(layers[index]).get("forward") for index in stand_ins}
    try:
        for index, stand_in in stand_ins.items():
            layers[index].forward = stand_in
        yield
    finally:
        for index, forward in before.items():
            vars(layers[index]).pop("forward", None)
            if forward is not None:
                layers[index].forward = forward


def check_structure(model: torch.nn.Module) -> None:
    """Refuse a model by how it is built.

    Raises:
        NestingError: if it has no plain stack of layers, or if layers read the keys and values of others.
    """
    decoder_layers(model)
    inner = language_model(model)
    if getattr(inner.config.get_text_config(), "num_kv_shared_layers", None):
        raise NestingError(
            f"{type(inner).__name__} shares keys and values between layers, and the readers of a skipped one would "
            "find nothing; it cannot be nested"
        )


def check_nestable(model: torch.nn.Module) -> None:
    """Refuse a model whose nested roll-outs would be silently wrong, or would not be what training scores.

    Raises:
        NestingError: if `check_structure` does, if left padding shifts its positions, or if it drops
            units in training.
    """
    check_structure(model)
    inner = language_model(model)
    name = type(inner).__name__
    tokens = torch.arange(1, 9, device=inner.device).unsqueeze(0)  # any eight

    def last_logits(training: bool, padding: int = 0) -> torch.Tensor:
        """Return logits (V,) as TRL scores them: padding is told by the mask, no positions are given."""
        model.train(training)
        padded = torch.nn.functional.pad(tokens, (padding, 0))
        return inner(input_ids=padded, attention_mask=(padded > 0).long(), use_cache=False).logits[0, -1].float()

    was_training = model.training
    with torch.no_grad(), torch.random.fork_rng():
        logits, shifted, dropped = last_logits(False), last_logits(False, padding=8), last_logits(True)
    model.train(was_training)
    # Rounding moves logits by 1e-6 (float32) to 2e-2 (bfloat16) of their spread, shifted positions by .2 and more.
    if rms(logits - shifted) > 0.1 * logits.std():
        raise NestingError(
            f"{name} reads absolute positions, which left padding shifts, and TRL gives none: its roll-outs are not "
            "what training scores; it cannot be used"
        )
    if rms(logits - dropped) > 1e-3 * logits.std():
        raise NestingError(
            f"{name} drops units at random in training, so that its log-probabilities differ by more than the skipped "
            "layers; set disable_dropout, and every dropout of its config.json to 0"
        )


def rms(values: torch.Tensor) -> torch.Tensor:
    """Return the root of the mean square."""
    return values.square().mean().sqrt()


class Skipping(NamedTuple):
    """What one skip ratio means for a model: a column of Table 1, and how much faster a token can become at most."""

    skip_ratio: float
    num_skipped: int  # k
    bound: float  # N / (N - k): where launching layers takes the time (Property 1)
    bound_with_lm_head: float  # where reading weights does: the output projection is read for every token too


def bounds(num_layers: int, k: int, layer_parameters: int, lm_head_parameters: int) -> tuple[float, float]:
    """Return how much faster a token can become at most by skipping k of N layers, as in `Skipping`."""
    left = (num_layers - k) * layer_parameters + lm_head_parameters
    return num_layers / (num_layers - k), (num_layers * layer_parameters + lm_head_parameters) / left


class Stack(NamedTuple):
    """The layers of a model, and what may be skipped of them."""

    name: str
    num_layers: int  # N
    valid_layers: list[int]
    layer_parameters: int  # of one layer, in the mean
    lm_head_parameters: int
    skipping: list[Skipping]


def describe_stack(model: str, border: int, skip_ratios: list[float]) -> Stack:
    """Return what nesting a model amounts to; reads its config and no weights.

    Args:
        model: a folder, `embedded/<name>`, a name on the hub, or one of transformers' model types.
        border: b.
        skip_ratios: the ratios x of interest.

    Raises:
        ConfigError: if there is no such model, or if it cannot be nested.
    """
    if model in CONFIG_MAPPING:
        config = CONFIG_MAPPING[model]()
    else:
        try:
            source = ModelSource(path=model)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"model {model!r} is no model type of transformers, and {message}") from None
        try:
            config = AutoConfig.from_pretrained(source.local_path or model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"could not read the config of {model!r} ({str(error).splitlines()[0]})") from None
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    try:
        check_structure(whole)
    except NestingError as error:
        raise ConfigError(str(error)) from None
    layers, valid = decoder_layers(whole), skippable_layers(whole, border)
    layer_parameters, lm_head_parameters = parameter_counts(whole)
    skipping = []
    for skip_ratio in skip_ratios:
        k = num_skipped(len(layers), skip_ratio)
        if k > len(valid):
            raise ConfigError(
                f"skip ratio {skip_ratio} skips {k} of {len(layers)} layers, of which {len(valid)} may be skipped at "
                f"border {border}; choose a smaller one"
            )
        skipping.append(Skipping(skip_ratio, k, *bounds(len(layers), k, layer_parameters, lm_head_parameters)))
    return Stack(type(whole).__name__, len(layers), valid, layer_parameters, lm_head_parameters, skipping)
