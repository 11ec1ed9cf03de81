"""Imports without garbage collection."""

import gc

import pytest

from nested_reft.startup import quick_imports


def test_the_collector_rests_during_imports_and_then_skips_what_they_left():
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        left = [[] for _ in range(1_000)]
    assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(left)


def test_the_collector_works_again_after_an_import_that_fails():
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import nested_reft.missing  # noqa: F401
    assert gc.isenabled()
