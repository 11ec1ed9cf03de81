"""`import nested_reft`: what users of the package may rely on."""

import inspect
import subprocess
import sys
import tomllib

import pytest

import nested_reft
from tests.conftest import ROOT


def test_importing_the_package_is_fast_and_loads_no_heavy_library():
    script = """
import sys, time
started = time.perf_counter()
import nested_reft
seconds = time.perf_counter() - started
heavy = {"torch", "transformers", "trl", "mlflow", "sympy", "pandas", "pydantic"} & set(sys.modules)
assert not heavy and seconds < 0.2, (heavy, seconds)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_every_public_name_is_importable():
    from nested_reft import NestedGRPOTrainer, NestedRLOOTrainer, Nesting, Sampler, grade, nested

    assert {NestedGRPOTrainer.__name__, NestedRLOOTrainer.__name__, Nesting.__name__, Sampler.__name__} == {
        name for name in nested_reft.__all__ if name[0].isupper()
    }
    assert inspect.isfunction(grade) and inspect.isfunction(nested)
    assert dir(nested_reft) == sorted(nested_reft.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nestling'"):
        nested_reft.Nestling  # noqa: B018


def test_the_version_is_that_of_the_project_file():
    assert nested_reft.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
