"""Forwards of a model in float32, whatever the type of its weights."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import PreTrainedModel


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Compute the forwards of a model in float32 from its own weights, which are converted one module at a time.

    Autocast is off, also where a trainer has wrapped the forward of the model in it.
    """
    hooks, own_weights = [], dict[torch.nn.Parameter, torch.Tensor]()
    without_autocast = ExitStack()

    def convert(module: torch.nn.Module, args: object) -> None:
        for weight in module.parameters(recurse=False):
            if weight.is_floating_point() and weight.dtype != torch.float32:
                own_weights[weight] = weight.data
                weight.data = weight.data.float()

    def restore(module: torch.nn.Module, args: object, output: object) -> None:
        for weight in module.parameters(recurse=False):
            if weight in own_weights:
                weight.data = own_weights.pop(weight)

    def disable_autocast(module: torch.nn.Module, args: object) -> None:
        without_autocast.enter_context(torch.autocast(model.device.type, enabled=False))

    def restore_autocast(module: torch.nn.Module, args: object, output: object) -> None:
        without_autocast.close()

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for module in model.modules():
            hooks += [module.register_forward_pre_hook(convert), module.register_forward_hook(restore)]
        for module in model.children():
            hooks += [module.register_forward_pre_hook(disable_autocast)]
            hooks += [module.register_forward_hook(restore_autocast, always_call=True)]
        # A layer with an adapter would round its input to the type that the adapter has before its conversion.
        with disable_input_dtype_casting(model):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for hook in hooks:
            hook.remove()
        for weight, data in own_weights.items():  # of modules whose forward has failed
            weight.data = data
