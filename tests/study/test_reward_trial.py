"""The trial call of a user's own reward function before the first job."""

import pytest

from nested_reft.errors import UserError
from nested_reft.grading.rewards import REWARDS
from nested_reft.study.reward_trial import try_reward

OWN = """
import torch

def good(completions, answer, trainer_state, log_metric, **kwargs):
    log_metric("length", float(trainer_state.global_step))
    assert len(kwargs["prompts"]) == len(kwargs["completion_ids"]) == len(kwargs["problem"]) == len(answer)
    return [float(expected in completion) for completion, expected in zip(completions, answer)]

def some(completions, **kwargs):
    return [None, *(1 for _ in completions[1:])]

def grouped(completions, **kwargs):
    return torch.tensor([float(len(text)) for text in completions]).view(-1, 4).softmax(-1).flatten()

async def served(completions, **kwargs):
    return [1.0 for _ in completions]

def scalar(completions, **kwargs):
    return 1.0

def text(completions, **kwargs):
    return ["good" for _ in completions]

def nothing(completions, **kwargs):
    pass

def one(completions, **kwargs):
    return [1.0]

def columns(completions, **kwargs):
    return [[1.0] for _ in completions]

def chat(completions, **kwargs):
    return [len(completion[-1]["content"]) for completion in completions]

def ends(completions, **kwargs):
    raise SystemExit(3)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("function", ["good", "some", "grouped", "served"])
def test_a_reward_that_trl_accepts_passes(function):
    try_reward(f"own.py:{function}", 4)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("scalar", "returned 1.0 when it was called on 4 made-up completions; return a list with a number or None"),
        (
            "text",
            "returned ['good', 'good', 'good', 'good'] when it was called on 4 made-up completions; return a list",
        ),
        ("nothing", "returned None when it was called on 4 made-up completions; return a list with a number or None"),
        ("one", "returned 1 values for 4 completions when it was called on 4 made-up completions; return a list with"),
        (
            "columns",
            "returned [[1.0], [1.0], [1.0], [1.0]] when it was called on 4 made-up completions; return a list with a",
        ),
        ("chat", "failed when it was called on 4 made-up completions (TypeError: string indices must be integers"),
        ("ends", "(SystemExit: 3, in line 37 of own.py)"),
    ],
)
def test_a_reward_that_would_fail_in_a_training_is_one_sentence(function, words):
    with pytest.raises(UserError) as error:
        try_reward(f"own.py:{function}", 4)
    assert f"training.reward_funcs has own.py:{function}, which " in str(error.value)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_reward_of_this_package_is_not_called(monkeypatch):
    monkeypatch.setitem(REWARDS, "correctness", lambda **arguments: 1 / 0)
    try_reward("correctness", 4)
