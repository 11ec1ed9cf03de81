"""LoRA adapters: the modules that get one, the number of weights that are trained, and the config for a trainer."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nested_reft.config.sections import Lora
from nested_reft.errors import UserError
from nested_reft.model.layers import decoder_layers

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"


class Adapter(NamedTuple):
    """The size of the adapter of a model: the modules that get one, and its weights, all of which are trained."""

    num_modules: int
    num_parameters: int

    def __str__(self) -> str:
        return f"{self.num_modules} modules, {self.num_parameters / 1e6:,.2f} M parameters"


def lora_config(settings: Lora) -> LoraConfig:
    """Return the settings in the words of peft."""
    # In a list, peft takes `all-linear` for the name of a module.
    targets = ALL_LINEAR if settings.target_modules == [ALL_LINEAR] else settings.target_modules
    return LoraConfig(**settings.model_dump() | {"target_modules": targets}, task_type="CAUSAL_LM")


def describe_adapter(config: PretrainedConfig, settings: Lora, key: str) -> Adapter:
    """Return the size of an adapter, from the config of a model and without its weights.

    An adapter of the embeddings or of the output projection is refused: TRL computes log-probabilities without it,
    and merging it would change both where they share their weights.

    Args:
        config: the config of the model.
        settings: the settings of the adapter.
        key: the key of these settings in the configuration, for the message.

    Raises:
        UserError: a target names a module that is not a linear layer of the decoder, or no module.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        inside = set(decoder_layers(model).modules())
        linear = {
            name
            for name, module in model.named_modules()
            if module in inside and isinstance(module, torch.nn.Linear | Conv1D)
        }
        for target in [] if settings.target_modules == [ALL_LINEAR] else settings.target_modules:
            named = {name for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")}
            if not named or named - linear:
                ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in sorted(linear)))
                raise UserError(
                    f"{key}.target_modules has {target!r}, which names no linear layer of the decoder of "
                    f"{type(model).__name__}; choose {ALL_LINEAR}, or some of {ends}"
                )
        adapted = get_peft_model(model, lora_config(settings))
    return Adapter(len(adapted.base_model.targeted_module_names), adapted.get_nb_trainable_parameters()[0])


def read_adapter(folder: Path, settings: Lora, key: str) -> Adapter:
    """Return the size of an adapter of the model in a folder, as `describe_adapter` does."""
    return describe_adapter(AutoConfig.from_pretrained(folder, trust_remote_code=False), settings, key)


def adapter_for(model: PreTrainedModel, settings: Lora | None, key: str) -> LoraConfig | None:
    """Return the config of the adapter that a trainer adds to a model, or None if all weights are trained.

    Raises:
        UserError: a target names a module that is not a linear layer of the decoder, or no module.
    """
    if settings is None:
        return None
    adapter = describe_adapter(model.config, settings, key)
    log.info("LoRA of rank %d: %s of %.2f M are trained", settings.r, adapter, model.num_parameters() / 1e6)
    return lora_config(settings)
