"""Reward functions with the signature that TRL expects."""

from collections.abc import Callable
from typing import Any

from nested_reft.grading.extract import until_first_answer
from nested_reft.grading.grade import grade

# A completion as TRL passes it: plain text, or the messages of its chat format.
Completion = str | list[dict[str, str]]


def correctness(
    completions: list[Completion],
    answer: list[str],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """Return the reward of each completion: 1 for a correct answer, 0 for a wrong or missing one.

    Args:
        completions: the completions, as text or as messages.
        answer: the column of expected answers.
        log_metric: TRL's function that logs a metric; it receives `grading/timeouts`, the number of answers that
            are wrong because the algebra did not finish.
        **kwargs: the other columns and arguments that TRL passes.
    """
    grades = [grade(text_of(completion), expected) for completion, expected in zip(completions, answer, strict=True)]
    if log_metric is not None:
        log_metric("grading/timeouts", float(sum(one.how in ("timeout", "died") for one in grades)))
    return [float(one.correct) for one in grades]


def first_answer_correctness(completions: list[Completion], answer: list[str], **kwargs: Any) -> list[float]:
    """Return the rewards of completions of fixed length: the first answer counts.

    The EOS token is banned from such completions, so the model goes on after its answer, and that text is noise.
    """
    return correctness([until_first_answer(text_of(completion)) for completion in completions], answer, **kwargs)


def text_of(completion: Completion) -> str:
    """Return the text of a completion; in the chat format, the text of the last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
