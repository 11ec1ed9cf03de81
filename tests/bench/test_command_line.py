"""A user's mistakes on the command line of `nested-reft bench`."""

import re

import pytest

from nested_reft.cli import app
from nested_reft.errors import UserError
from tests.bench.checks import bench
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rollout", "some/model"), "'some/model' is not here; give a folder"),
        (("rollout", "embedded/tiny-29"), "is not an embedded model"),
        (("rollout", "embedded/tiny-28", "--skip-ratios", "0.99"), "which skips 28 of the 28 layers"),
        (("rollout", "embedded/tiny-28", "--skip-ratios", "none"), "give numbers from 0 to below 1"),
        (("train", "nowhere"), "model 'nowhere' does not exist"),
        (("eval", "qwen2.5-7b"), "give a trained model"),
        (
            ("rollout", "embedded/tiny-28", "--json", "nowhere/a.json"),
            "nowhere/a.json cannot be written: nowhere is not a folder",
        ),
        (("figure", str(ROOT / "README.md"), "--out", "nowhere"), "pass only such files"),
        (
            ("figure", str(ROOT / "README.md"), "--out", "nowhere/a"),
            "nowhere/a cannot be written: nowhere is not a folder",
        ),
    ],
)
def test_bad_input_is_reported_in_one_sentence(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        app(["bench", *arguments], standalone_mode=False)
    assert "\n" not in str(raised.value)


def test_bad_input_exits_with_2():
    finished = bench("figure", "README.md", "--out", "nowhere")
    assert finished.returncode == 2
    assert finished.stderr.startswith("Error: ") and finished.stderr.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--dtype", "int8"), ("--sampler", "generate")])
def test_an_unknown_choice_exits_with_2_and_names_the_known_ones(option, value):
    finished = bench("rollout", "embedded/tiny-28", option, value)
    assert finished.returncode == 2
    assert (
        value in finished.stderr and {"--dtype": "bfloat16", "--sampler": "engine-compiled"}[option] in finished.stderr
    )
