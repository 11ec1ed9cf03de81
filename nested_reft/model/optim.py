"""The check that an optimizer can run. Torch is not needed."""

import importlib.util
from typing import Literal

from nested_reft.config.sections import Optimization
from nested_reft.errors import UserError


def check_optim(
    settings: Optimization, section: Literal["sft", "training"], has_gpu: bool, distributed: str = "none"
) -> str:
    """Return the name of the optimizer, and refuse one of bitsandbytes where it cannot run.

    Args:
        settings: the settings of the stage.
        section: the section of the configuration that the settings come from, for the message.
        has_gpu: whether the stage has an NVIDIA GPU.
        distributed: `none`, `ddp` or `fsdp`.

    Raises:
        UserError: bitsandbytes is not installed, has no GPU, or would have to update sharded weights.
    """
    if settings.optim != "adamw_torch":
        problem = None
        if distributed == "fsdp":  # https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1633
            problem = "cannot update the weights that FSDP2 shards; set jobs.distributed to ddp"
        elif importlib.util.find_spec("bitsandbytes") is None:
            problem = "needs bitsandbytes, which is not installed; `pip install .[bitsandbytes]`"
        elif not has_gpu:
            problem = "needs an NVIDIA GPU, which the job does not have; take one (jobs.gpus)"
        if problem is not None:
            raise UserError(f"{section}.optim is {settings.optim!r}, which {problem}, or set it to adamw_torch")
    return settings.optim
