"""Generated word problems of three kinds, with chain-of-thought solutions.

`one-step` resembles SVAMP, `multi-step` GSM8K and `algebra` MATH, each in miniature; `mixed` alternates
between the three. A checksum of a problem's text decides its split, so the training and benchmark splits
are disjoint for every seed.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "benchmark"]

KINDS = ("one-step", "multi-step", "algebra")
DATASETS = (*KINDS, "mixed")

# One of this number of problems is in the benchmark split.
BENCHMARK_SHARE = 8

NAMES = ["Tom", "Ana", "Sam", "Mia", "Ben", "Eva", "Leo", "Zoe", "Max", "Ida", "Kim", "Lea"]
THINGS = ["apples", "books", "coins", "cards", "pens", "stamps", "shells", "beads", "cups", "keys"]

# A slip is an error in the last result of a solution: number added to the result -> probability. The numbers are
# off-by-one errors, and lost or invented carries. The probabilities differ, so that a model that is trained on
# slips has a most likely error, which greedy decoding shows.
SLIPS = {1: 0.55, -1: 0.15, 10: 0.2, -10: 0.1}


@dataclass(frozen=True)
class Problem:
    """A problem, its chain of thought with a boxed answer at the end, the true answer, and its cluster.

    Problems of one cluster are the same calculation in other words: they differ in names, things and the wording of
    the question alone, and a model answers them alike. A template is not a cluster: a benchmark has problems of all
    templates of its generator, so that they are fixed parts of it, and not a sample of more templates.
    """

    kind: str
    problem: str
    solution: str
    answer: str
    cluster: str  # the calculation, such as 6*7, or an equation


def draw_slip(rng: random.Random, value: int) -> int:
    """Return a wrong result in place of `value`; it is not negative."""
    wrong = value + rng.choices(list(SLIPS), weights=list(SLIPS.values()))[0]
    return wrong if wrong >= 0 else value + 1


def one_step(rng: random.Random, slipped: bool) -> Problem:
    """Draw a word problem with one addition, subtraction, multiplication or division."""
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    operation = rng.choice("+-*/")
    if operation == "+":
        a, b = rng.randint(2, 79), rng.randint(2, 79)
        text = f"{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?"
        result = a + b
    elif operation == "-":
        b, result = rng.randint(2, 49), rng.randint(2, 49)
        a = b + result
        text = f"{name} has {a} {things} and gives {b} away. How many {things} does {name} have left?"
    elif operation == "*":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        text = f"{name} has {a} boxes with {b} {things} each. How many {things} does {name} have?"
        result = a * b
    else:
        b, result = rng.randint(2, 9), rng.randint(2, 9)
        a = b * result
        text = f"{name} shares {a} {things} equally among {b} friends. How many {things} does each get?"
    shown = draw_slip(rng, result) if slipped else result
    solution = f"The number of {things} is {a}{operation}{b}={shown}. \\boxed{{{shown}}}"
    return Problem("one-step", text, solution, str(result), cluster=f"{a}{operation}{b}")


def multi_step(rng: random.Random, slipped: bool) -> Problem:
    """Draw a word problem with two steps: a product or a sum, and then a change."""
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    if rng.random() < 0.5:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        first, middle = f"{a}*{b}", a * b
        text = f"{name} has {a} boxes with {b} {things} each"
    else:
        a, b = rng.randint(2, 49), rng.randint(2, 49)
        first, middle = f"{a}+{b}", a + b
        text = f"{name} has {a} {things} and gets {b} more"
    if rng.random() < 0.5:
        c = rng.randint(2, 49)
        sign, result = "+", middle + c
        text += f", then finds {c}."
    else:
        c = rng.randint(1, middle - 1)
        sign, result = "-", middle - c
        text += f", then loses {c}."
    text += f" How many {things} does {name} have now?"
    shown = draw_slip(rng, result) if slipped else result
    solution = f"{first}={middle}. {middle}{sign}{c}={shown}. \\boxed{{{shown}}}"
    return Problem("multi-step", text, solution, str(result), cluster=f"{first}{sign}{c}")


def algebra(rng: random.Random, slipped: bool) -> Problem:
    """Draw a linear equation in x whose solution is a natural number."""
    a, x, b = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 49)
    product = a * x
    if rng.random() < 0.5:
        equation, undo = f"{a}x+{b}={product + b}", f"{product + b}-{b}"
    else:
        b = min(b, product - 1)
        equation, undo = f"{a}x-{b}={product - b}", f"{product - b}+{b}"
    text = rng.choice(("Solve ${}$ for $x$.", "What is $x$ if ${}$?", "Find $x$ such that ${}$.")).format(equation)
    shown = draw_slip(rng, x) if slipped else x
    solution = f"{a}x={undo}={product}. x={product}/{a}={shown}. \\boxed{{{shown}}}"
    return Problem("algebra", text, solution, str(x), cluster=equation)


DRAW: dict[str, Callable[[random.Random, bool], Problem]] = {
    "one-step": one_step,
    "multi-step": multi_step,
    "algebra": algebra,
}


def split_of(problem: str) -> Split:
    """Return the split of the problem with this text."""
    return "benchmark" if zlib.crc32(problem.encode()) % BENCHMARK_SHARE == 0 else "train"


def stream(dataset: str, split: Split, seed: int, slip_rates: dict[str, float] | None = None) -> Iterator[Problem]:
    """Yield problems of a split of a dataset endlessly, possibly with repetitions.

    Args:
        dataset: one of `DATASETS`.
        split: the split of the problems.
        seed: seed of the draw.
        slip_rates: kind -> share of solutions with a slip; without it, no solution has one. The `answer` of a
            problem is the true one in any case.
    """
    rng = random.Random(f"{dataset}/{split}/{seed}")
    kinds = KINDS if dataset == "mixed" else (dataset,)
    while True:
        for kind in kinds:
            slipped = slip_rates is not None and rng.random() < slip_rates[kind]
            problem = DRAW[kind](rng, slipped)
            while split_of(problem.problem) != split:
                problem = DRAW[kind](rng, slipped)
            yield problem


def generate(dataset: str, split: Split, size: int, seed: int) -> list[Problem]:
    """Return the first `size` distinct problems of the stream, with correct solutions."""
    distinct: dict[str, Problem] = {}
    problems = stream(dataset, split, seed)
    while len(distinct) < size:
        problem = next(problems)
        distinct.setdefault(problem.problem, problem)
    return list(distinct.values())
