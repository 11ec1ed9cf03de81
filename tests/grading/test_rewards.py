"""The reward functions, as TRL calls them."""

import pytest

from nested_reft.grading import algebra
from nested_reft.grading.extract import boxed
from nested_reft.grading.rewards import correctness, first_answer_correctness


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
