r"""Answer extraction and verification: the reward in training and the score in evaluation.

An answer is what the last `\boxed{...}` holds. Numbers are compared exactly, as fractions; what is
not a number goes to math-verify, with the expected answer boxed too (bare LaTeX is misread by it).
"""

import re
from fractions import Fraction
from typing import Any

BOX = "\\boxed{"
PLAIN_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
PLAIN_FRACTION = re.compile(r"([+-]?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")


def boxes(text: str) -> list[tuple[int, str]]:
    r"""Return (end, content) of every closed `\boxed{...}` of the text, outermost ones only."""
    found: list[tuple[int, str]] = []
    start = text.find(BOX)
    while start >= 0:
        depth, end = 1, start + len(BOX)
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            return found
        found.append((end, text[start + len(BOX) : end - 1]))
        start = text.find(BOX, end)
    return found


def extract_answer(completion: str) -> str | None:
    """Return the content of the last closed box, or None without one."""
    found = boxes(completion)
    return found[-1][1].strip() if found else None


def until_first_answer(completion: str) -> str:
    """Return the text up to the first closed box: where a fixed-length completion ends by nature.

    With the end token banned the model has to go on after its answer; what it then writes is noise,
    and no reward may come from it.
    """
    found = boxes(completion)
    return completion[: found[0][0]] if found else completion


def normalize(answer: str) -> str:
    """Return the answer without white space, dollar signs, thousands separators and size commands."""
    answer = re.sub(r"\\(left|right|displaystyle|,|!|;|%|\$)|\s|\$", "", answer.strip().rstrip("."))
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("{,}", ",")
    return answer.replace(",", "") if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", answer) else answer


def to_number(answer: str) -> Fraction | None:
    """Return a normalised integer, decimal or fraction exactly, or None for anything else."""
    if len(answer) > 100:
        return None
    if PLAIN_NUMBER.fullmatch(answer):
        return Fraction(answer)
    if fraction := PLAIN_FRACTION.fullmatch(answer):
        sign, *parts = fraction.groups()
        numerator, denominator = (int(part) for part in parts if part)
        return Fraction(-numerator if sign == "-" else numerator, denominator) if denominator else None
    return None


def equivalent(found: str, expected: str) -> bool:
    """Whether two answers, without their boxes, are the same."""
    found, expected = normalize(found), normalize(expected)
    if found == expected:
        return True
    numbers = to_number(found), to_number(expected)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if len(found) > 400 or not found:
        return False
    from math_verify import LatexExtractionConfig, parse, verify

    how = [LatexExtractionConfig(boxed_match_priority=0)]
    gold, answer = (parse(f"{BOX}{text}}}", extraction_config=how) for text in (expected, found))
    return verify(gold, answer)


def is_correct(completion: str, answer: str | list[str]) -> bool:
    """Whether the completion's last boxed answer equals the expected answer, or any of a list."""
    found = extract_answer(completion)
    accepted = [answer] if isinstance(answer, str) else answer
    return found is not None and any(equivalent(found, expected) for expected in accepted)


def correctness(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Reward 1 for a right answer and 0 for a wrong or missing one: an ordinary TRL reward function."""
    return [
        float(is_correct(until_first_answer(completion), expected))
        for completion, expected in zip(completions, answer, strict=True)
    ]
