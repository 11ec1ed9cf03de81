"""The speed of grading: how many answers a second are graded."""

import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nested_reft.grading import algebra
from nested_reft.grading.grade import grade, is_correct
from nested_reft.records.files import read_rows

# Answers of the kinds that occur in benchmarks, each with an equal and with a wrong answer.
MIXED = [
    (r"\frac{3}{4}", "0.75", r"\frac{4}{3}"),
    (r"2\sqrt{13}", r"\sqrt{52}", r"2\sqrt{12}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", r"(3, -\frac{\pi}{2})"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)", r"(-\infty, 2] \cup (3, \infty)"),
    ("1, -2, 5", "5, 1, -2", "1, -2"),
    (r"x^2 - 4x + 7", "7 - 4x + x^2", "x^2 + 4x + 7"),
    (r"\begin{pmatrix} -2 \\ 5 \end{pmatrix}", r"\begin{bmatrix}-2\\5\end{bmatrix}", r"\begin{bmatrix}2\\5\end{bmatrix}"),  # noqa: E501
    (r"8.7 \times 10^{8}", "8.7e8", r"8.7 \times 10^{9}"),
    (r"\text{Monday}", "monday", r"\text{Tuesday}"),
    ("12,345", "12345", "12346"),
    (r"50\%", "0.5", r"5\%"),
    (r"\frac{1}{2 n+2}", r"\frac{1}{2(n+1)}", r"\frac{1}{2 n+1}"),
    ("y = 2x + 1", "2x - y + 1 = 0", "y = 2x - 1"),
    (r"3 \pm 2\sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2", r"3+2\sqrt{2}"),
    (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}", r"\frac{n(n-1)}{2}"),
    (r"120^\circ", "120", "60"),
]  # fmt: skip


def rate(rows: Sequence[tuple[str, Any]], repeats: int) -> dict[str, float]:
    """Return the answers graded per second, median and range over repeats; caches are cleared between repeats."""
    rates = []
    for _ in range(repeats):
        algebra.reset()
        is_correct(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")  # starts the child process of the algebra
        started = time.perf_counter()
        for completion, answer in rows:
            grade(completion, answer)
        rates.append(len(rows) / (time.perf_counter() - started))
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates), "rows": len(rows)}


def bench_grade(benchmarks: Path | None, repeats: int) -> dict[str, dict[str, float]]:
    """Measure the grader on plain numbers, on answers of all kinds, and on the gold answers of prepared benchmarks.

    Args:
        benchmarks: a file written by `prepare benchmarks`; each gold answer is graded unchanged and perturbed.
        repeats: the number of measurements of each set of answers.
    """
    generator = random.Random(0)
    numbers = [str(generator.randrange(-(10**6), 10**6)) for _ in range(5000)]
    plain = [
        (f"So the answer is \\boxed{{{number}}}.", number if generator.random() < 0.5 else str(int(number) + 1))
        for number in numbers
    ]
    mixed = [(f"\\boxed{{{spelling}}}", answer) for answer, *others in MIXED for spelling in (answer, *others)]
    results = {"plain numbers": rate(plain, repeats), "all kinds, right and wrong": rate(mixed, repeats)}
    if benchmarks is not None:
        answers = [row["answer"] for row in read_rows(benchmarks)]
        rows = [(f"\\boxed{{{answer[0]}}}", answer) for answer in answers]
        rows += [(f"\\boxed{{{perturbed(answer[0])}}}", answer) for answer in answers]
        results["benchmarks, right and perturbed"] = rate(rows, repeats)
    return results


def perturbed(answer: str) -> str:
    """Return the answer with its last digit one higher, or, if it has none, negative."""
    changed = re.sub(r"\d(?=\D*$)", lambda match: str((int(match[0]) + 1) % 10), answer)
    return changed if changed != answer else f"-{answer}"
