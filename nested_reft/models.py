"""What nesting has to know of a model: its stack of layers, what they return, and whether nesting it is sound."""

from typing import Any

import torch
from transformers import PreTrainedModel


class NestingError(ValueError):
    """Roll-outs from this nested model would be silently wrong; says why, in one sentence."""


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


def check_nestable(model: torch.nn.Module) -> None:
    """Refuse a model whose nested roll-outs would be silently wrong, or would not be what training scores.

    Raises:
        NestingError: if it has no plain stack of layers, if layers read the keys and values of other
            layers, if it drops units in training, or if left padding shifts its positions.
    """
    decoder_layers(model)
    inner = language_model(model)
    name = type(inner).__name__
    if getattr(inner.config.get_text_config(), "num_kv_shared_layers", None):
        raise NestingError(
            f"{name} shares keys and values between layers, and the readers of a skipped one would find nothing; "
            "it cannot be nested"
        )
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
