r"""The child process that compares answers symbolically; nothing else of the package is imported here.

It reads JSON lines [expected, found] and answers each with a line: `equal`, `different` or `unparsed`.
Whatever hangs or blows up in the algebra takes this process with it and not the trainer: memory is
bounded, a timer of the kernel ends it even inside of C code, and so does the end of its parent.

Whole answers are parsed, by the parser that math-verify builds on, and not by `math_verify.parse`, which
falls back to whatever number it finds inside of an answer that it cannot read. Scalars are compared by
their values at fixed points, which does not hang where `simplify` does.
"""

import json
import os
import resource
import signal
import sys
import warnings

MEMORY_BYTES = 3 * 2**29  # 1.5 GiB
LIMIT_S = 3.0


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    bound_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print must not pass for an answer
    import logging

    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(2000)
    compare = comparison()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        expected, found = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S + 0.5)
        try:
            answer = compare(expected, found)
        except (Exception, RecursionError):  # of a parser on text that a model wrote
            answer = "unparsed"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(answer, file=answers, flush=True)


def bound_memory() -> None:
    """Let the kernel refuse memory beyond the bound, and write no dump of what breaks on it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def comparison():  # type: ignore[no-untyped-def]
    """Return the function that compares two answers; the imports take a second, once."""
    from functools import lru_cache

    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import verify
    from sympy import Basic, Eq, Expr, MatrixBase, Rational
    from sympy.core.relational import Ge, Gt, Le, Lt, Ne, Relational

    how = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
    points = [
        Rational(n, d) for n, d in ((13, 7), (-5, 11), (17, 5), (4, 1), (-29, 13), (7, 3), (-2, 1), (31, 17), (3, 19))
    ]
    flipped = {Lt: Gt, Gt: Lt, Le: Ge, Ge: Le}

    cased = ConversionConfig(lowercase_symbols=False)

    @lru_cache(maxsize=512)
    def parse(text):  # type: ignore[no-untyped-def]
        return latex2sympy(text, normalization_config=how, conversion_config=cased)

    def value_at(expression, symbols, shift):  # type: ignore[no-untyped-def]
        """Return the value at a point to 30 digits, of however large terms, or None where there is none."""
        at = {symbol: points[(shift + 2 * index) % len(points)] + index // 4 for index, symbol in enumerate(symbols)}
        value = sympy.N(expression.subs(at), 30, maxn=300)
        return value if value.is_number and value.is_finite and not value.free_symbols else None

    def close(one, other, difference, decimal):  # type: ignore[no-untyped-def]
        if decimal:
            return bool(abs(one - other) <= max(abs(one), abs(other)) / 10**6)
        return difference is not None and bool(abs(difference) < Rational(1, 10**20))

    def same_scalar(expected, found):  # type: ignore[no-untyped-def]
        if not expected.free_symbols | found.free_symbols:
            expected, found = expected.doit(), found.doit()
        if expected.is_Rational and found.is_Rational:
            return expected == found
        imaginary = sympy.Symbol("i")
        if same_values(expected, found):
            return True
        if imaginary in expected.free_symbols | found.free_symbols and not (expected + found).has(
            sympy.Sum, sympy.Product
        ):
            return same_values(expected.subs(imaginary, sympy.I), found.subs(imaginary, sympy.I))
        return False

    def same_values(expected, found):  # type: ignore[no-untyped-def]
        symbols = sorted(expected.free_symbols | found.free_symbols, key=str)
        decimal = expected.has(sympy.Float) or found.has(sympy.Float)
        compared = 0
        for shift in range(7 if symbols else 1):
            one, other = value_at(expected, symbols, shift), value_at(found, symbols, shift)
            if one is None and other is None:
                continue
            if one is None or other is None:
                return False
            # a root or a logarithm of what is negative there: only that both are real says something
            negative = any(points[(shift + 2 * index) % len(points)] < 0 for index in range(len(symbols)))
            if negative and not (one.is_real and other.is_real):
                continue
            difference = None if decimal else value_at(expected - found, symbols, shift)
            if not close(one, other, difference, decimal):
                return False
            compared += 1
        return compared >= (2 if symbols else 1)

    def same_relation(expected, found):  # type: ignore[no-untyped-def]
        if type(expected) is not type(found):
            if flipped.get(type(found)) is not type(expected):
                return False
            found = found.reversed
        one, other = expected.lhs - expected.rhs, found.lhs - found.rhs
        if one.free_symbols != other.free_symbols or not one.free_symbols:
            return expected.lhs == found.lhs and expected.rhs == found.rhs
        symbols = sorted(one.free_symbols, key=str)
        ratios = []
        for shift in range(7):
            left, right = value_at(one, symbols, shift), value_at(other, symbols, shift)
            if left is None or right is None or left == 0 or right == 0:
                continue
            ratios.append(left / right)
        same = all(abs(ratio - ratios[0]) <= abs(ratios[0]) / 10**9 for ratio in ratios)
        if len(ratios) < 3 or not same:
            return False
        return isinstance(expected, (Eq, Ne)) or bool(sympy.re(ratios[0]) > 0)

    def compare(expected_text, found_text):  # type: ignore[no-untyped-def]
        if expected_text.count("'") != found_text.count("'"):
            return "different"  # the parser drops primes
        expected, found = parse(expected_text), parse(found_text)
        if any(hasattr(one, "has") and one.has(sympy.zoo, sympy.nan) for one in (expected, found)):
            return "unparsed"  # a division by zero, or a time of day read as one
        if isinstance(expected, Eq) and not isinstance(found, Relational) and expected.lhs.is_Symbol:
            expected = expected.rhs
        if isinstance(found, Eq) and not isinstance(expected, Relational) and found.lhs.is_Symbol:
            found = found.rhs
        if isinstance(expected, MatrixBase) and isinstance(found, MatrixBase):
            if expected.shape != found.shape:
                return "different"
            pairs = zip(expected, found, strict=True)
            return "equal" if all(same_scalar(one, other) for one, other in pairs) else "different"
        if isinstance(expected, Relational) and isinstance(found, Relational):
            return "equal" if same_relation(expected, found) else "different"
        scalar = (Expr, MatrixBase)
        if isinstance(expected, scalar) and isinstance(found, scalar) and not isinstance(expected, MatrixBase):
            if isinstance(found, MatrixBase):
                return "different"
            return "equal" if expected == found or same_scalar(expected, found) else "different"
        if isinstance(expected, (Basic, MatrixBase)) and isinstance(found, (Basic, MatrixBase)):
            if isinstance(expected, Relational) != isinstance(found, Relational) and not found.is_set:
                return "different"
            return "equal" if verify(expected, found, timeout_seconds=None) else "different"
        return "unparsed"

    return compare


if __name__ == "__main__":
    main()
