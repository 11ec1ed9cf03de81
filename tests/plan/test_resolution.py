"""The smallest delta that a study resolves."""

import numpy as np
import pytest

from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError
from nested_reft.plan.resolution import DEFAULT_PILOT, read_pilot, resolution
from tests.conftest import ROOT


def test_the_default_variances_are_those_of_the_committed_study():
    found = read_pilot(ROOT / DEFAULT_PILOT.source)
    for name in ("seed", "problem", "interaction", "sampling"):
        value, default = (np.array(getattr(pilot, name)) for pilot in (found, DEFAULT_PILOT))
        assert value == pytest.approx(default, rel=0.02, nan_ok=True), name


def test_a_study_with_one_seed_is_refused_as_a_pilot():
    with pytest.raises(UserError, match="one seed"):
        read_pilot(ROOT / "docs/reports/embedded")


def test_more_seeds_resolve_smaller_deltas():
    study = read_study(ROOT / "config/paper.yaml", ["grid.seed=[0,1,2]"])
    found = resolution(study, [30, 83, 500, 272, 675])
    assert list(found.by_seeds) == [3, 5, 10]
    assert sorted(found.by_seeds.values(), reverse=True) == list(found.by_seeds.values())
