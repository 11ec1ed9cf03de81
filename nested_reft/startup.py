"""A quick start of commands that import torch, transformers, TRL and MLflow."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import libraries in this context in about two thirds of the time.

    The libraries leave some two million objects, nearly all of which live as long as the process. The garbage
    collector is off while they are imported, and then regards what exists as permanent: otherwise it would search all
    of these objects dozens of times during the imports, at each later full collection, and when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
