"""Reward functions with the signature that TRL expects."""

from collections.abc import Callable
from typing import Any

from nested_reft.grading.extract import until_first_answer
from nested_reft.grading.grade import grade

Completion = str | list[dict[str, str]]


def correctness(
    completions: list[Completion],
    answer: list[str],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """Reward 1 for a right answer and 0 for a wrong or missing one: an ordinary TRL reward function.

    Args:
        completions: what the model wrote, as text or as messages.
        answer: the column of expected answers.
        log_metric: TRL's; gets `grading/timeouts`, how many answers were wrong for taking too long.
        **kwargs: the other columns, and what else TRL passes.
    """
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    verdicts = [grade(text, expected) for text, expected in zip(texts, answer, strict=True)]
    if log_metric is not None:
        log_metric("grading/timeouts", float(sum(verdict.how in ("timeout", "died") for verdict in verdicts)))
    return [float(verdict.correct) for verdict in verdicts]


def first_answer_correctness(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Reward the first answer of completions of fixed length: the rest is what the ban on the end token made."""
    return correctness([until_first_answer(completion) for completion in completions], answer, **kwargs)
