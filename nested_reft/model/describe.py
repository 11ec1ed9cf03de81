"""What `nested-reft layers` prints of a model: its layers, those that may be skipped, and the bounds on speed."""

from typing import NamedTuple

import torch
from pydantic import ValidationError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from nested_reft.config.sections import ModelSource
from nested_reft.errors import NestingError, UserError
from nested_reft.model.checks import check_structure
from nested_reft.model.layers import decoder_layers, parameter_counts, skippable_layers
from nested_reft.nesting import bounds, num_skipped


class Skipping(NamedTuple):
    """What one skip ratio means for a model: a column of Table 1, and how much faster a token can become at most."""

    skip_ratio: float
    num_skipped: int  # k
    bound: float  # N / (N - k): where launching layers takes the time (Property 1)
    bound_with_lm_head: float  # where reading weights does: the output projection is read for every token too


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
        UserError: if there is no such model, or if it cannot be nested.
    """
    if model in CONFIG_MAPPING:
        config = CONFIG_MAPPING[model]()
    else:
        try:
            source = ModelSource(path=model)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"model {model!r} is no model type of transformers, and {message}") from None
        try:
            config = AutoConfig.from_pretrained(source.local_path or model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"could not read the config of {model!r} ({str(error).splitlines()[0]})") from None
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    try:
        check_structure(whole)
    except NestingError as error:
        raise UserError(str(error)) from None
    layers, valid = decoder_layers(whole), skippable_layers(whole, border)
    layer_parameters, lm_head_parameters = parameter_counts(whole)
    skipping = []
    for skip_ratio in skip_ratios:
        k = num_skipped(len(layers), skip_ratio)
        if k > len(valid):
            raise UserError(
                f"skip ratio {skip_ratio} skips {k} of {len(layers)} layers, of which {len(valid)} may be skipped at "
                f"border {border}; choose a smaller one"
            )
        skipping.append(Skipping(skip_ratio, k, *bounds(len(layers), k, layer_parameters, lm_head_parameters)))
    return Stack(type(whole).__name__, len(layers), valid, layer_parameters, lm_head_parameters, skipping)
