"""Checks that refuse a model whose nested roll-outs would be silently wrong."""

import torch

from nested_reft.errors import NestingError
from nested_reft.model.layers import decoder_layers, language_model
from nested_reft.model.precision import in_float32


def check_structure(model: torch.nn.Module) -> None:
    """Refuse a model by its structure; its weights are not read.

    Raises:
        NestingError: if the model has no plain stack of layers, or if layers read the keys and values of others.
    """
    decoder_layers(model)
    inner = language_model(model)
    if getattr(inner.config.get_text_config(), "num_kv_shared_layers", None):
        raise NestingError(
            f"{type(inner).__name__} shares keys and values between layers, and a layer that reads those of a skipped "
            "layer would find none; it cannot be nested"
        )


def check_nestable(model: torch.nn.Module) -> None:
    """Refuse a model if its nested roll-outs, or the log-probabilities of the training forward, would be wrong.

    Raises:
        NestingError: if `check_structure` refuses the model, if PEFT adds virtual tokens, if left padding shifts the
            model's positions, or if the model has dropout in training.
    """
    check_structure(model)
    inner = language_model(model)
    name = type(inner).__name__
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise NestingError(
            f"{adapter.peft_type.value} adds virtual tokens to the prompt outside of {name}, and the samplers leave "
            "them out; use an adapter inside of the layers, such as LoRA"
        )
    tokens = torch.arange(1, 9, device=inner.device).unsqueeze(0)  # any eight token ids

    def last_logits(training: bool, padding: int = 0) -> torch.Tensor:
        """Return the logits (V,) of the last token, as TRL scores it: with an attention mask but no positions."""
        model.train(training)
        padded = torch.nn.functional.pad(tokens, (padding, 0))
        return inner(input_ids=padded, attention_mask=(padded > 0).long(), use_cache=False).logits[0, -1].float()

    was_training = model.training
    with torch.no_grad(), torch.random.fork_rng(), in_float32(inner):
        logits, padded_logits, training_logits = last_logits(False), last_logits(False, padding=8), last_logits(True)
    model.train(was_training)
    # In float32, rounding moves logits by 1e-6 of their spread, and shifted positions by over 0.2 of it. In bfloat16,
    # rounding alone may move those of a pretrained model by 0.1 of it.
    if rms(logits - padded_logits) > 0.1 * logits.std():
        raise NestingError(
            f"{name} reads absolute positions, which left padding shifts, and TRL passes no positions: roll-outs and "
            "training would see different positions; the model cannot be used"
        )
    # Dropout of a fresh LoRA adapter does not change the logits yet, since the adapter is zero.
    has_dropout = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    if has_dropout or rms(logits - training_logits) > 1e-3 * logits.std():
        raise NestingError(
            f"{name} drops units at random in training, so that its log-probabilities differ even without skipped "
            "layers; set disable_dropout to True, and every dropout of its config.json to 0"
        )


def rms(values: torch.Tensor) -> torch.Tensor:
    """Return the root mean square."""
    return values.square().mean().sqrt()
