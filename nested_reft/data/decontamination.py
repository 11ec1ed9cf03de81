"""Training problems to leave out: duplicates, contradictions, and problems of a benchmark."""

import re
import unicodedata
from collections.abc import Iterator

from nested_reft.data.sources import Row
from nested_reft.grading.extract import boxed
from nested_reft.grading.grade import is_correct


def normalized(problem: str) -> str:
    """Return the problem in lower case, without dollar signs, with one Unicode spelling of each character."""
    return unicodedata.normalize("NFKC", problem).lower().replace("$", "")


def fingerprint(problem: str) -> str:
    """Return the words and signs of the problem; problems that differ in white space and case share it."""
    return " ".join(re.findall(r"\w+|[^\w\s]", normalized(problem)))


def ngrams(problem: str, n: int) -> Iterator[str]:
    """Yield every sequence of `n` consecutive words of the problem; signs are ignored."""
    words = re.findall(r"\w+", normalized(problem))
    for start in range(len(words) - n + 1):
        yield " ".join(words[start : start + n])


def duplicates_and_contradictions(rows: list[Row]) -> list[Row]:
    """Return the rows that repeat an earlier problem, and all rows that contradict themselves or each other.

    Each has its `row`, `kind` (`duplicate` or `contradiction`), `problem` and the `reason`.
    """
    by_fingerprint: dict[str, list[Row]] = {}
    for row in rows:
        by_fingerprint.setdefault(fingerprint(row["problem"]), []).append(row)
    found = []
    for first, *others in by_fingerprint.values():
        other = next((row for row in others if not is_correct(boxed(row["answer"]), first["answer"])), None)
        for row in (first, *others):
            kind, reason = "contradiction", row.get("contradiction")
            if other:
                answers = f"the answers {first['answer']} and {other['answer']}"
                reason = f"rows {first['row']} and {other['row']} are one problem with {answers}"
            elif row is not first:
                kind, reason = "duplicate", f"row {first['row']} is the same problem"
            if reason:
                found.append({"row": row["row"], "kind": kind, "problem": row["problem"], "reason": reason})
    return found


def contaminated(rows: list[Row], benchmarks: list[Row], n: int) -> list[Row]:
    """Return the rows whose problem is in a benchmark, or shares `n` consecutive words with one of its problems.

    Each has its `row`, `kind` (`exact` or `n-gram`), `problem`, the `benchmark`, the `benchmark_problem`, and
    the first shared sequence of words as `ngram` (None if exact).
    """
    exact = {fingerprint(row["problem"]): row for row in benchmarks}
    by_ngram = {ngram: row for row in benchmarks for ngram in ngrams(row["problem"], n)}
    found = []
    for row in rows:
        match, shared = exact.get(fingerprint(row["problem"])), None
        if match is None:
            shared = next((ngram for ngram in ngrams(row["problem"], n) if ngram in by_ngram), None)
            if shared is None:
                continue
            match = by_ngram[shared]
        facts = {"benchmark": match["benchmark"], "benchmark_problem": match["problem"], "ngram": shared}
        kind = "n-gram" if shared else "exact"
        found.append({"row": row["row"], "kind": kind, "problem": row["problem"]} | facts)
    return found
