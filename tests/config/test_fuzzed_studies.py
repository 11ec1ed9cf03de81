"""A thousand studies with random mistakes: each is accepted or refused with one sentence, never with a traceback."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nested_reft.config.layout import products
from nested_reft.config.study_file import read_study
from nested_reft.errors import UserError
from nested_reft.study.jobs import job_paths
from tests.conftest import ROOT

STUDY = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
SECTIONS = ("sft", "training", "nesting", "evaluation", "analysis", "tracking", "jobs", "prompt", "grid")
# Values that a person may write by mistake, or that have broken parsers before.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 40),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", " ", "null", "1e-3", "0.15", "base", "retrace", "embedded/tiny-28", "é", "\x00"]),
    st.sampled_from(["../..", "/", "~", "~nobody/model", "a/b", "a" * 300, "9" * 5000]),
    st.sampled_from([2**70, -1, 0, 1e308]),
)
ANYTHING = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in nested mappings and lists."""
    children = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    return [place for key, value in children for place in [(*path, key), *places(value, (*path, key))]]


def changed(content: Any, path: tuple[Any, ...], kind: str, value: Any) -> None:
    """Change one value in place: replace it, remove it, or write another key beside it."""
    for key in path[:-1]:
        content = content[key]
    if kind == "remove":
        del content[path[-1]]
    elif kind == "add" and isinstance(content, dict):
        content[str(value)[:20]] = value
    else:
        content[path[-1]] = value


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a study with one to three mistakes, most of them in keys that exist."""
    study = copy.deepcopy(STUDY)
    for section in SECTIONS:
        study.setdefault(section, {})
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(study)))
        changed(study, path, draw(st.sampled_from(["replace", "replace", "remove", "add"])), draw(ANYTHING))
    return study


def outcome(file: Path) -> str:
    """Return `accepted`, or the sentence that refuses a study; what an accepted study would run is computed."""
    try:
        study = read_study(file)
    except UserError as error:
        return str(error)
    for path, product in products(study):
        assert path and product["product"]
    assert job_paths(study)
    return "accepted"


def check(text: str, file: Path) -> str:
    """Write a study, and check that its outcome is one sentence."""
    file.write_text(text, errors="surrogatepass")
    found = outcome(file)
    assert found and len(found) < 1000 and found.isprintable(), found
    return found


@pytest.mark.slow
@given(study=studies())
@settings(
    max_examples=700, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_studies_with_wrong_values_are_accepted_or_refused_with_a_sentence(study, tmp_path):
    check(yaml.safe_dump(study, allow_unicode=True), tmp_path / "study.yaml")


@pytest.mark.slow
def test_studies_with_damaged_text_are_accepted_or_refused_with_a_sentence(tmp_path):
    draws = random.Random(0)
    text = (ROOT / "config/config.yaml").read_text()
    outcomes = []
    for _ in range(300):
        damaged = list(text)
        for _ in range(draws.randint(1, 4)):
            place = draws.randrange(len(damaged))
            damaged[place : place + draws.choice([0, 1, 1, 30])] = draws.choice(
                ["", "\t", ":", "{", "[", "'", "- ", "\x07", "\n", "&a", "*a", "!!python/object:os.system", "é"]
            )
        outcomes.append(check("".join(damaged), tmp_path / "study.yaml"))
    assert {one == "accepted" for one in outcomes} == {True, False}
