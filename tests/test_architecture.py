"""The contracts of imports, `[tool.importlinter]` in pyproject.toml, and what the light packages load."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "trl", "mlflow", "sympy")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Return the run of import-linter on the package in a folder."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


@pytest.fixture()
def copied(tmp_path) -> Path:
    """Return a folder with a copy of the package's modules and of its contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "nested_reft", tmp_path / "nested_reft", ignore=shutil.ignore_patterns("tiny-*", "wide-*"))
    return tmp_path


def test_the_package_keeps_its_contracts():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "broken", "chain"),
    [
        (
            "nesting.py",
            "from nested_reft.config.study import Study",
            "Nothing imports upward BROKEN",
            "nested_reft.nesting -> nested_reft.config.study",
        ),
        (
            "report/paper.py",
            "def late() -> None:\n    from nested_reft import trainer",
            "Nothing imports upward BROKEN",
            "nested_reft.report.paper -> nested_reft.trainer",
        ),
        (
            "grading/extract.py",
            "from nested_reft.grading import grade",
            "No folder has modules that import each other in a circle BROKEN",
            "nested_reft.grading",
        ),
        (
            "config/study.py",
            "import torch",
            "Configuration, records, grading and reports need no model libraries BROKEN",
            "nested_reft.config.study -> torch",
        ),
    ],
)
def test_a_planted_import_breaks_its_contract(copied, module, planted, broken, chain):
    path = copied / "nested_reft" / module
    path.write_text(path.read_text() + f"\n{planted}\n")
    done = lint_imports(copied)
    assert done.returncode == 1, done.stdout + done.stderr
    assert broken in done.stdout and chain in done.stdout, done.stdout


@pytest.mark.parametrize("package", ["config", "records", "grading", "report", "cli"])
def test_importing_a_light_package_loads_no_heavy_library(package):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "nested_reft" / package).glob("*.py"))
        # This program runs in a process of its own, for the sake of sympy.
        if path.stem not in ("__init__", "algebra_worker")
    ]
    code = f"import sys, {', '.join(modules)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
