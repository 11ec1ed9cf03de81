"""Shipped configs, and the embedded study with a change."""

import copy
from typing import Any

import yaml

from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    """Return the content of a shipped config."""
    return yaml.safe_load((ROOT / "config" / name).read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the embedded study with one key changed; a value of ... removes the key."""
    study = copy.deepcopy(load("config.yaml"))
    *sections, last = path.split(".")
    section = study
    for name in sections:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return study
