r"""The child process that compares answers symbolically.

It reads JSON lines [expected, found] and answers each with a line: `equal`, `different` or `unparsed`.
An input that hangs the algebra or fills the memory ends this process and never the trainer: the memory is
bounded, and a timer of the kernel ends the process even inside C code. It also ends when its parent has
ended. `algebra.py` runs this file as a script; the script imports nothing else of the package.

Answers are parsed by latex2sympy2, the parser that math-verify builds on. `math_verify.parse` is not used,
because it falls back to any number that it finds inside an answer that it cannot parse. Expressions are
compared by their values at fixed points, which does not hang where `simplify` does.
"""

import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from sympy import Basic, Eq, Expr, MatrixBase, Ne, Rational, Symbol
from sympy.core.relational import Ge, Gt, Le, Lt, Relational

MEMORY_BYTES = 3 * 2**29  # 1.5 GiB

NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
CONVERSION = ConversionConfig(lowercase_symbols=False)

# Values for the symbols of an expression; the negative ones distinguish |x| from x.
POINTS = [
    Rational(n, d) for n, d in ((13, 7), (-5, 11), (17, 5), (4, 1), (-29, 13), (7, 3), (-2, 1), (31, 17), (3, 19))
]
NUM_SHIFTS = 7  # the number of assignments of these points to the symbols
MIRRORED = {Lt: Gt, Gt: Lt, Le: Ge, Ge: Le}


def main(limit_s: float) -> None:
    """Answer requests until the parent closes the pipe.

    Args:
        limit_s: seconds after which the kernel ends the process in the middle of a comparison.
    """
    bound_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the parent would read a library's output as an answer
    sys.setrecursionlimit(2000)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        expected, found = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            answer = compare(expected, found)
        except (Exception, RecursionError):  # the parser raises almost anything on a model's text
            answer = "unparsed"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(answer, file=answers, flush=True)


def bound_memory() -> None:
    """Let the kernel refuse memory beyond the bound, and write no core dump of a process that exceeds it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def compare(expected_text: str, found_text: str) -> str:
    """Return `equal`, `different` or `unparsed` for two cleaned answers; the parser may raise any exception."""
    if expected_text.count("'") != found_text.count("'"):
        return "different"  # the parser drops primes
    expected, found = parse(expected_text), parse(found_text)
    if any(hasattr(one, "has") and one.has(sympy.zoo, sympy.nan) for one in (expected, found)):
        return "unparsed"  # a division by zero, or a time of day that was parsed as a division
    expected, found = without_name(expected, found), without_name(found, expected)
    same = same_object(expected, found)
    if same is None:
        return "unparsed"
    return "equal" if same else "different"


@lru_cache(maxsize=512)
def parse(text: str) -> Basic | MatrixBase:
    """Return the sympy object that an answer in LaTeX denotes."""
    return latex2sympy(text, normalization_config=NORMALIZATION, conversion_config=CONVERSION)


def without_name(one: Basic, other: Basic) -> Basic:
    """Return the value of `x = value`, unless the other side is a relation too."""
    is_assignment = isinstance(one, Eq) and one.lhs.is_Symbol and not isinstance(other, Relational)
    return one.rhs if is_assignment else one


def same_object(expected: Basic, found: Basic) -> bool | None:
    """Return whether two sympy objects are equal, or None if they cannot be compared."""
    if isinstance(expected, MatrixBase) and isinstance(found, MatrixBase):
        return expected.shape == found.shape and all(map(same_scalar, expected, found))
    if isinstance(expected, Relational) and isinstance(found, Relational):
        return same_relation(expected, found)
    if isinstance(expected, Expr) and not isinstance(expected, MatrixBase) and isinstance(found, Expr | MatrixBase):
        return not isinstance(found, MatrixBase) and bool(expected == found or same_scalar(expected, found))
    if isinstance(expected, Relational) or isinstance(found, Relational):
        return None
    if isinstance(expected, Basic | MatrixBase) and isinstance(found, Basic | MatrixBase):
        return bool(verify(expected, found, timeout_seconds=None))
    return None


def same_scalar(expected: Expr, found: Expr) -> bool:
    """Whether two expressions have the same values, if necessary with `i` as the imaginary unit."""
    if not expected.free_symbols | found.free_symbols:
        expected, found = expected.doit(), found.doit()
    if expected.is_Rational and found.is_Rational:
        return bool(expected == found)
    if same_values(expected, found):
        return True
    i = Symbol("i")
    if i not in expected.free_symbols | found.free_symbols:
        return False
    if (expected + found).has(sympy.Sum, sympy.Product):  # there `i` is an index
        return False
    return same_values(expected.subs(i, sympy.I), found.subs(i, sympy.I))


def same_values(expected: Expr, found: Expr) -> bool:
    """Whether two expressions agree at every point where both have a value, and at two such points at least."""
    symbols = sorted(expected.free_symbols | found.free_symbols, key=str)
    has_decimal = expected.has(sympy.Float) or found.has(sympy.Float)
    num_compared = 0
    for shift in range(NUM_SHIFTS if symbols else 1):
        one, other = value_at(expected, symbols, shift), value_at(found, symbols, shift)
        if one is None and other is None:
            continue
        if one is None or other is None:
            return False
        # Branches of roots and logarithms differ at negative points: there only real values are compared.
        is_negative = any(point < 0 for point in base_points(symbols, shift))
        if is_negative and not (one.is_real and other.is_real):
            continue
        if has_decimal:
            if not abs(one - other) <= max(abs(one), abs(other)) / 10**6:
                return False
        else:
            difference = value_at(expected - found, symbols, shift)
            if difference is None or not abs(difference) < Rational(1, 10**20):
                return False
        num_compared += 1
    return num_compared >= (2 if symbols else 1)


def same_relation(expected: Relational, found: Relational) -> bool:
    """Whether two equations or inequalities are the same up to a factor, which is positive for inequalities."""
    if type(expected) is not type(found):
        if MIRRORED.get(type(found)) is not type(expected):
            return False
        found = found.reversed
    one, other = expected.lhs - expected.rhs, found.lhs - found.rhs
    if one.free_symbols != other.free_symbols or not one.free_symbols:
        return bool(expected.lhs == found.lhs and expected.rhs == found.rhs)
    symbols = sorted(one.free_symbols, key=str)
    ratios = []
    for shift in range(NUM_SHIFTS):
        left, right = value_at(one, symbols, shift), value_at(other, symbols, shift)
        if left is None or right is None or left == 0 or right == 0:
            continue
        ratios.append(left / right)
    if not all(abs(ratio - ratios[0]) <= abs(ratios[0]) / 10**9 for ratio in ratios) or len(ratios) < 3:
        return False
    return isinstance(expected, Eq | Ne) or bool(sympy.re(ratios[0]) > 0)


def base_points(symbols: list[Symbol], shift: int) -> Iterator[Rational]:
    """Return the point of each symbol under an assignment; symbols that are nine places apart have the same point."""
    return (POINTS[(shift + 2 * index) % len(POINTS)] for index in range(len(symbols)))


def value_at(expression: Expr, symbols: list[Symbol], shift: int) -> Expr | None:
    """Return the value at a point to 30 digits, or None where the expression has none.

    Args:
        expression: the expression, whose terms may be of any size.
        symbols: the symbols, in the order in which points are assigned to them.
        shift: the number of the assignment.
    """
    points = zip(symbols, base_points(symbols, shift), strict=True)
    values = {symbol: point + index // 4 for index, (symbol, point) in enumerate(points)}
    value = sympy.N(expression.subs(values), 30, maxn=300)
    return value if value.is_number and value.is_finite and not value.free_symbols else None


if __name__ == "__main__":
    main(float(sys.argv[1]))
