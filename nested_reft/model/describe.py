"""The data of `nested-reft layers`: the layers of a model, those that may be skipped, and bounds on the speed-up."""

from typing import NamedTuple

import torch
from pydantic import ValidationError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from nested_reft.config.sections import ModelSource, convert_first
from nested_reft.errors import NestingError, UserError
from nested_reft.model.checks import check_structure
from nested_reft.model.layers import decoder_layers, parameter_counts, skippable_layers
from nested_reft.nesting import bounds, num_skipped


class Skipping(NamedTuple):
    """One skip ratio applied to a model: a column of Table 1, and upper bounds on the speed-up of a decode step."""

    skip_ratio: float
    num_skipped: int  # k
    bound: float  # N / (N - k), if the layers take all of the time (Property 1)
    bound_with_lm_head: float  # if reading weights takes all of the time; every token reads the output projection too


class Stack(NamedTuple):
    """The layers of a model and the layers that may be skipped."""

    name: str
    num_layers: int  # N
    valid_layers: list[int]
    layer_parameters: int  # of one layer, on average
    lm_head_parameters: int
    skipping: list[Skipping]


def find_source(model: str, subject: str) -> ModelSource:
    """Return the source of a model that is named on the command line.

    Args:
        model: a folder, `embedded/<name>` or a name on the hub.
        subject: the subject of the sentence that says what is wrong, such as `model 'mine'`.

    Raises:
        UserError: no model has this name, or the name is that of a GGUF file whose weights were not dequantised yet.
    """
    try:
        source = ModelSource(path=model)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{subject} {message}") from None
    if source.gguf_file is not None and source.local_path is None:
        raise UserError(convert_first(source.gguf_file))
    return source


def describe_stack(model: str, border: int, skip_ratios: list[float]) -> Stack:
    """Return the layers of a model and the effect of each skip ratio, from its config and without its weights.

    Args:
        model: a folder, `embedded/<name>`, a name on the hub, or a model type of transformers.
        border: b.
        skip_ratios: the ratios x to describe.

    Raises:
        UserError: if there is no such model, or if it cannot be nested at a skip ratio.
    """
    if model in CONFIG_MAPPING:
        config = CONFIG_MAPPING[model]()
    else:
        source = find_source(model, f"model {model!r} is not a model type of transformers, and")
        try:
            config = AutoConfig.from_pretrained(source.local_path or model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"could not read the config of {model!r} ({str(error).splitlines()[0]})") from None
    try:
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
        check_structure(whole)
    except ImportError as error:  # a family that needs a package of its own, such as timm
        raise UserError(f"model {model!r} cannot be built: {' '.join(str(error).split())}") from None
    except NestingError as error:
        raise UserError(str(error)) from None
    except ValueError as error:  # not a causal language model
        raise UserError(f"model {model!r} cannot be nested: {str(error).splitlines()[0]}") from None
    layers, valid = decoder_layers(whole), skippable_layers(whole, border)
    layer_parameters, lm_head_parameters = parameter_counts(whole)
    skipping = []
    for skip_ratio in skip_ratios:
        k = num_skipped(len(layers), skip_ratio)
        if k > len(valid):
            raise UserError(
                f"skip ratio {skip_ratio} skips {k} of {len(layers)} layers, of which {len(valid)} may be skipped at "
                f"border {border}; choose a smaller skip ratio"
            )
        skipping.append(Skipping(skip_ratio, k, *bounds(len(layers), k, layer_parameters, lm_head_parameters)))
    return Stack(type(whole).__name__, len(layers), valid, layer_parameters, lm_head_parameters, skipping)
