"""The reward functions, as TRL calls them."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from nested_reft.errors import UserError
from nested_reft.grading import algebra
from nested_reft.grading.extract import boxed
from nested_reft.grading.rewards import (
    REWARDS,
    correctness,
    explained,
    first_answer_correctness,
    load_reward,
    reward_files,
)


def test_no_reward_comes_from_after_the_natural_end():
    """A model whose EOS token is banned goes on after its answer, and that text is noise."""
    right_then_noise, noise_then_right = r"\boxed{5} \boxed{6}", r"\boxed{6} \boxed{5}"
    completions, answers = [right_then_noise, noise_then_right, "5"], ["5", "5", "5"]
    assert first_answer_correctness(completions, answers) == [1.0, 0.0, 0.0]
    assert correctness(completions, answers) == [0.0, 1.0, 0.0]  # without a ban the last box counts
    thought = r"<think>try \boxed{1}? no</think> so \boxed{2}"
    assert first_answer_correctness([thought + r" \boxed{1}"] * 2, ["2", "1"]) == [1.0, 0.0]


def test_the_reward_is_an_ordinary_one_of_trl():
    logged = {}
    completions = [boxed("4"), boxed(r"\sin(10^{10^{9}})"), "4", boxed("5")]
    algebra.reset()
    rewards = correctness(
        completions=completions, answer=["4"] * 4, prompts=["?"] * 4, log_metric=logged.__setitem__, completion_ids=[]
    )
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    assert logged == {"grading/timeouts": 1.0}


def as_chat(text):
    return [{"role": "assistant", "content": "\\boxed{0}"}, {"role": "assistant", "content": text}]


@pytest.mark.parametrize(("reward", "expected"), [(correctness, [0.0, 1.0]), (first_answer_correctness, [1.0, 0.0])])
def test_both_rewards_accept_text_and_chat(reward, expected):
    """Messages are TRL's chat format; the last one counts."""
    texts = [r"\boxed{5} \boxed{6}", r"\boxed{6} \boxed{5}"]
    assert reward(completions=texts, answer=["5", "5"]) == expected
    assert reward(completions=[as_chat(text) for text in texts], answer=["5", "5"], prompts=["?", "?"]) == expected


OWN = """
import functools

def short(completions, **kwargs):
    return [1 / len(completion) for completion in completions]

@functools.wraps(short)
def wrapped(*args, **kwargs):
    return short(*args, **kwargs)

def narrow(completions, answer):
    return [0.0]

number = 3
"""


def test_rewards_are_found_by_name_and_by_file_and_by_module(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    assert all(load_reward(name) is function for name, function in REWARDS.items())
    names = [f"{tmp_path}/own.py:short", f"{tmp_path}/own.py:wrapped", "correctness"]
    assert load_reward(names[0])(completions=["ab"], prompts=[""]) == [0.5]
    assert reward_files(names) == dict.fromkeys(names[:2], tmp_path / "own.py")
    monkeypatch.chdir(tmp_path)  # a path is relative to the working directory
    assert load_reward("own.py:short")(completions=["a"]) == [1.0]
    assert load_reward("nested_reft.grading.rewards:correctness") is correctness


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("correctnes", "has 'correctnes', which is not a reward; choose one of correctness, first_answer_correctness"),
        ("missing.py:short", "import failed (FileNotFoundError: "),
        ("no_such_package.rewards:short", "import failed (ModuleNotFoundError: No module named 'no_such_package')"),
        ("broken.py:short", "import failed (SyntaxError: "),
        ("own.py:long", "but own.py has no Python function 'long'"),
        ("own.py:number", "but own.py has no Python function 'number'"),
        ("own.py:narrow", "end its parameters with **kwargs"),
        ("column.py:hard", "with the parameter difficulty, which TRL does not pass; it passes prompts, completions"),
        ("script.py:short", "import failed (SystemExit: 0)"),
    ],
)
def test_a_reward_that_cannot_be_used_is_one_sentence(name, words, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def short(:\n")
    (tmp_path / "script.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "column.py").write_text("def hard(completions, difficulty, **kwargs):\n    return [0.0]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_reward(name)
    assert words in str(error.value) and "\n" not in str(error.value)


def raises(completions, **kwargs):
    return [len(text) / 0 for text in completions]


async def awaits(completions, **kwargs):
    return ["good" for _ in completions]


async def breaks(completions, **kwargs):
    return raises(completions)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (raises, r"failed at step 8 \(ZeroDivisionError: .*, in line \d+ of test_rewards.py\); correct it"),
        (breaks, r"failed at step 8 \(ZeroDivisionError: .*, in line \d+ of test_rewards.py\); correct it"),
        (awaits, r"returned \['good', 'good'\] at step 8; return a list with a number or None per completion"),
        (lambda completions, **kwargs: [1.0], "returned 1 values for 2 completions at step 8; return a list"),
        (lambda completions, **kwargs: None, "returned None at step 8; return a list"),
        (lambda completions, **kwargs: "ab", "returned 'ab' at step 8; return a list"),
        (lambda completions, **kwargs: [[1.0], [2.0]], r"returned \[\[1.0\], \[2.0\]\] at step 8; return a list"),
    ],
)
def test_what_an_own_reward_does_wrong_in_a_training_is_one_sentence(reward, words):
    arguments = {"completions": ["a", "b"], "trainer_state": SimpleNamespace(global_step=7)}
    with pytest.raises(UserError, match=f"training.reward_funcs has own.py:name, which {words}") as error:
        returned = explained("own.py:name", reward)(**arguments)
        if inspect.iscoroutine(returned):
            asyncio.run(returned)
    assert "\n" not in str(error.value)


def test_an_explained_reward_is_otherwise_the_same():
    def own(completions, trainer_state, **kwargs):
        return [float(len(text)) if text else None for text in completions]

    checked = explained("own.py:own", own)
    assert checked.__name__ == "own" and not inspect.iscoroutinefunction(checked)
    assert checked(completions=["abc", ""], trainer_state=SimpleNamespace(global_step=0)) == [3.0, None]
