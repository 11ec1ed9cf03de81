"""Reward functions with the signature that TRL expects: those of this package, and the import of a user's own."""

import functools
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from nested_reft.config.local_path import local_path
from nested_reft.errors import UserError
from nested_reft.grading.extract import until_first_answer
from nested_reft.grading.grade import grade

# A completion as TRL passes it: plain text, or the messages of its chat format.
Completion = str | list[dict[str, str]]
Reward = Callable[..., list[float]]


def correctness(
    completions: list[Completion],
    answer: Sequence[str | list[str]],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """Return the reward of each completion: 1 for a correct answer, 0 for a wrong or missing one.

    Args:
        completions: the completions, as text or as messages.
        answer: the column of expected answers; a list holds several accepted ones.
        log_metric: TRL's function that logs a metric; it receives `grading/timeouts`, the number of answers that
            are wrong because the algebra did not finish.
        **kwargs: the other columns and arguments that TRL passes.
    """
    grades = [grade(text_of(completion), expected) for completion, expected in zip(completions, answer, strict=True)]
    if log_metric is not None:
        log_metric("grading/timeouts", float(sum(one.how in ("timeout", "died") for one in grades)))
    return [float(one.correct) for one in grades]


def first_answer_correctness(
    completions: list[Completion], answer: Sequence[str | list[str]], **kwargs: Any
) -> list[float]:
    """Return the rewards of completions of fixed length: the first answer counts.

    The EOS token is banned from such completions, so the model goes on after its answer, and that text is noise.
    """
    return correctness([until_first_answer(text_of(completion)) for completion in completions], answer, **kwargs)


def text_of(completion: Completion) -> str:
    """Return the text of a completion; in the chat format, the text of the last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


# The arguments that TRL passes to a reward function by name, and the columns of a training set, which it passes, too.
PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
COLUMNS = ("problem", "solution", "answer")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# The names that the config key `training.reward_funcs` accepts beside a user's own functions.
REWARDS: dict[str, Reward] = {"correctness": correctness, "first_answer_correctness": first_answer_correctness}


def load_reward(name: str) -> Reward:
    """Return the reward function of this name. The import of a user's own function runs the code of its module.

    Args:
        name: a key of `REWARDS`, `package.module:function`, or `path/to/file.py:function`.

    Raises:
        UserError: the function cannot be imported, or does not have the signature that TRL calls.
    """
    if name in REWARDS:
        return REWARDS[name]
    place, _, function_name = name.rpartition(":")
    if not place:
        raise UserError(
            f"training.reward_funcs has {name!r}, which is not a reward; choose one of {', '.join(REWARDS)}, or give "
            "your own as path/to/file.py:function or package.module:function"
        )
    try:
        module = import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may end the program
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(
            f"training.reward_funcs has {name}, whose import failed ({reason}); correct the path or the code"
        ) from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        raise UserError(
            f"training.reward_funcs has {name}, but {place} has no Python function {function_name!r}; correct it"
        )
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise UserError(
            f"training.reward_funcs has {name}, which does not accept all columns that TRL passes; "
            "end its parameters with **kwargs"
        )
    unknown = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind in NAMED and parameter.name not in PASSED + COLUMNS
    ]
    if unknown:
        raise UserError(
            f"training.reward_funcs has {name} with the parameter {unknown[0]}, which TRL does not pass; it passes "
            f"{', '.join(PASSED + COLUMNS)}"
        )
    return function


def is_reward(value: Any) -> bool:
    """Return whether a value is a number or None, as TRL accepts it for a completion."""
    if value is None or isinstance(value, str | bytes):
        return value is None
    try:
        float(value)  # also of numpy and of torch
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def checked_rewards(name: str, returned: Any, completions: Sequence[Completion], place: str) -> list[float | None]:
    """Return what a reward function returned as a list.

    Args:
        name: an entry of `training.reward_funcs`.
        returned: what the function returned.
        completions: the completions that it was called on.
        place: which call this was, for the message.

    Raises:
        UserError: it is not one number or None per completion.
    """
    try:
        rewards = list(returned)
    except TypeError:
        rewards = [""]  # no list, and no reward
    if not all(map(is_reward, rewards)):
        fault = f"{' '.join(repr(returned).split()):.80}"
    elif len(rewards) != len(completions):
        fault = f"{len(rewards)} values for {len(completions)} completions"
    else:
        return rewards
    raise UserError(
        f"training.reward_funcs has {name}, which returned {fault} {place}; return a list with a number or None per "
        "completion"
    )


def failed_reward(name: str, reward: Reward, error: BaseException, place: str) -> UserError:
    """Return the message for a reward function that failed: what it raised, and in which line of its file."""
    calls = traceback.extract_tb(error.__traceback__)
    file = inspect.unwrap(reward).__code__.co_filename
    lines = [call.lineno for call in calls if call.filename == file]
    where = f", in line {lines[-1]} of {Path(file).name}" if lines else ""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(
        f"training.reward_funcs has {name}, which failed {place} ({reason:.200}{where}); correct it, so that it "
        "returns a list with a number or None per completion"
    )


def explained(name: str, reward: Reward) -> Reward:
    """Return a reward function that does the same, and whose failures in a training are a sentence for the user.

    Args:
        name: an entry of `training.reward_funcs`.
        reward: the user's own function, which may be asynchronous.
    """

    def place(arguments: dict[str, Any]) -> str:
        state = arguments.get("trainer_state")  # TRL passes it, other callers need not
        return f"at step {state.global_step + 1}" if state else "when it was called"

    @functools.wraps(reward)
    def called(completions: list[Completion], **arguments: Any) -> list[float | None]:
        try:
            returned = reward(completions=completions, **arguments)
        except Exception as error:
            raise failed_reward(name, reward, error, place(arguments)) from error
        return checked_rewards(name, returned, completions, place(arguments))

    @functools.wraps(reward)
    async def awaited(completions: list[Completion], **arguments: Any) -> list[float | None]:
        try:
            returned = await cast(Any, reward)(completions=completions, **arguments)
        except Exception as error:
            raise failed_reward(name, reward, error, place(arguments)) from error
        return checked_rewards(name, returned, completions, place(arguments))

    return cast(Reward, awaited if inspect.iscoroutinefunction(reward) else called)


def import_file(path: Path) -> ModuleType:
    """Return the Python file as a module, without adding it to the modules that other code can import."""
    spec = importlib.util.spec_from_file_location(path.stem, local_path(path))
    assert spec is not None and spec.loader is not None  # the name of the file ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reward_files(names: list[str]) -> dict[str, Path]:
    """Return name -> the file with its code, for those reward functions that are not part of this package.

    Raises:
        UserError: a function cannot be imported.
    """
    own = {name: inspect.unwrap(load_reward(name)) for name in names if name not in REWARDS}
    return {name: Path(function.__code__.co_filename) for name, function in own.items()}
