"""A trial call of a user's own reward function before the first job, as TRL calls it, on made-up completions."""

import asyncio
import inspect
from typing import Any

from nested_reft.grading.rewards import REWARDS, checked_rewards, failed_reward, load_reward

PROBLEM, SOLUTION, ANSWER = "What is 1 + 1?", "1 + 1 = \\boxed{2}", "2"
# A right answer, a wrong one, and none.
COMPLETIONS = ("1 + 1 = \\boxed{2}", "The answer is \\boxed{3}.", "1 +")


def trial_arguments(num_completions: int) -> dict[str, Any]:
    """Return the arguments of a reward function for one group: completions of the same prompt."""
    from transformers import TrainerState

    completions = [COMPLETIONS[index % len(COMPLETIONS)] for index in range(num_completions)]
    columns = {"prompts": PROBLEM, "problem": PROBLEM, "solution": SOLUTION, "answer": ANSWER}
    return {name: [text] * num_completions for name, text in columns.items()} | {
        "completions": completions,
        "completion_ids": [list(text.encode()) for text in completions],
        "trainer_state": TrainerState(),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def try_reward(name: str, num_completions: int) -> None:
    """Call a reward function once, unless it is one of this package.

    Args:
        name: an entry of `training.reward_funcs`.
        num_completions: the number of completions per prompt.

    Raises:
        UserError: the function cannot be imported, fails, or does not return one number or None per completion.
    """
    reward = load_reward(name)
    if name in REWARDS:
        return
    arguments, place = trial_arguments(num_completions), f"when it was called on {num_completions} made-up completions"
    try:
        returned: Any = reward(**arguments)
        returned = asyncio.run(returned) if inspect.iscoroutine(returned) else returned
    except (Exception, SystemExit) as error:
        raise failed_reward(name, reward, error, place) from error
    checked_rewards(name, returned, arguments["completions"], place)
