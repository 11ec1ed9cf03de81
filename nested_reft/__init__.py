"""Nested-ReFT: reinforced fine-tuning with roll-outs from a layer-skipped copy of the model itself.

The names below are the public API. Each is imported when it is first used, so that `import nested_reft` and the
command line stay fast: torch and TRL take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which do not run __getattr__
    from nested_reft.config.sections import Nesting
    from nested_reft.grading.grade import grade
    from nested_reft.model.layers import nested
    from nested_reft.rollout.sampler import Sampler
    from nested_reft.trainer import NestedGRPOTrainer, NestedRLOOTrainer

    __version__: str

MODULES = {
    "NestedGRPOTrainer": "trainer",
    "NestedRLOOTrainer": "trainer",
    "Nesting": "config.sections",
    "Sampler": "rollout.sampler",
    "grade": "grading.grade",
    "nested": "model.layers",
}
__all__ = ["NestedGRPOTrainer", "NestedRLOOTrainer", "Nesting", "Sampler", "__version__", "grade", "nested"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("nested-reft")
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
