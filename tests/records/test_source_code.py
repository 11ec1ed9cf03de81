"""The source files that decide a product."""

from nested_reft.records.source_code import PACKAGE, imported_modules, source_files


def test_the_tables_depend_on_the_config_and_not_on_training():
    files = {str(path.relative_to(PACKAGE)) for path in source_files("report")}
    assert files >= {
        "report/tables.py",
        "report/statistics.py",
        "config/sections.py",
        "nesting.py",
        "records/files.py",
    }
    assert not files & {"trainer.py", "stages/train.py", "cli/stages.py", "records/source_code.py"}
    assert {str(path.relative_to(PACKAGE)) for path in (PACKAGE / "report").glob("*.py")} <= files


def test_imports_are_found_wherever_they_run():
    source = """
import torch
import nested_reft.nesting as layers
from nested_reft.config import parse
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nested_reft.trainer import NestedGRPOTrainer
def late():
    from nested_reft.records.files import read_json
"""
    assert set(imported_modules(source)) == {
        "nested_reft.nesting",
        "nested_reft.config",
        "nested_reft.config.parse",
        "nested_reft.records.files",
        "nested_reft.records.files.read_json",
    }
