"""Whether a model can be nested: checks that refuse a model whose roll-outs would be silently wrong."""

import torch

from nested_reft.errors import NestingError
from nested_reft.model.layers import decoder_layers, language_model


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
