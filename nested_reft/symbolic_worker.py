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
    points = [Rational(n, d) for n, d in ((13, 7), (5, 11), (17, 5), (3, 19), (29, 13), (7, 3), (31, 17), (2, 23))]
    flipped = {Lt: Gt, Gt: Lt, Le: Ge, Ge: Le}

    cased = ConversionConfig(lowercase_symbols=False)

    @lru_cache(maxsize=512)
    def parse(text):  # type: ignore[no-untyped-def]
        return latex2sympy(text, normalization_config=how, conversion_config=cased)

    def values(expression, symbols):  # type: ignore[no-untyped-def]
        """Yield the value at each point as a complex number of 30 digits, or None where there is none."""
        for shift in range(5):
            at = {
                symbol: points[(shift + 2 * index) % len(points)] + index // 4 for index, symbol in enumerate(symbols)
            }
            value = sympy.N(expression.subs(at), 30)
            real, _ = value.as_real_imag()
            finite = real.is_Float or real.is_Integer or real.is_Rational or real.is_zero
            yield (value if finite and value.is_number and value.is_finite else None)
            if not symbols:
                return

    def close(one, other, tolerance):  # type: ignore[no-untyped-def]
        size = max(abs(one), abs(other))
        return bool(abs(one - other) <= tolerance * size) if size else True

    def same_scalar(expected, found):  # type: ignore[no-untyped-def]
        symbols = sorted(expected.free_symbols | found.free_symbols, key=str)
        if expected.free_symbols != found.free_symbols and not (found - expected).equals(0):
            return False
        decimal = expected.has(sympy.Float) or found.has(sympy.Float)
        tolerance = Rational(1, 10**6) if decimal else Rational(1, 10**12)
        compared = 0
        for one, other in zip(values(expected, symbols), values(found, symbols), strict=True):
            if one is None or other is None:
                if (one is None) != (other is None):
                    return False
                continue
            if not close(one, other, tolerance):
                return False
            compared += 1
        return compared > 0

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
        for left, right in zip(values(one, symbols), values(other, symbols), strict=True):
            if left is None or right is None or left == 0 or right == 0:
                continue
            ratios.append(left / right)
        if len(ratios) < 3 or not all(close(ratio, ratios[0], Rational(1, 10**9)) for ratio in ratios):
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
