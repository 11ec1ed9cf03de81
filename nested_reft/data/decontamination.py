"""Training problems that repeat or contradict each other, or that a benchmark holds."""

import re
import unicodedata
from collections.abc import Iterator

from nested_reft.data.sources import Row
from nested_reft.grading.extract import BOX
from nested_reft.grading.grade import is_correct


def normalized(problem: str) -> str:
    """Return the problem in lower case, without dollar signs, in one spelling of every character."""
    return unicodedata.normalize("NFKC", problem).lower().replace("$", "")


def fingerprint(problem: str) -> str:
    """Return the words and signs of the problem, to compare by: neither white space nor case matters."""
    return " ".join(re.findall(r"\w+|[^\w\s]", normalized(problem)))


def ngrams(problem: str, n: int) -> Iterator[str]:
    """Yield every run of `n` words of the problem; signs do not count."""
    words = re.findall(r"\w+", normalized(problem))
    for start in range(len(words) - n + 1):
        yield " ".join(words[start : start + n])


def flawed(rows: list[Row]) -> list[Row]:
    """Return the rows that repeat an earlier problem, and all that contradict themselves or each other.

    Each has its `row`, `kind` (`duplicate` or `contradiction`), `problem` and the `reason`.
    """
    same: dict[str, list[Row]] = {}
    for row in rows:
        same.setdefault(fingerprint(row["problem"]), []).append(row)
    found = []
    for first, *others in same.values():
        other = next((row for row in others if not is_correct(f"{BOX}{row['answer']}}}", first["answer"])), None)
        for row in (first, *others):
            kind, reason = "contradiction", row.get("flaw")
            if other:
                answers = f"the answers {first['answer']} and {other['answer']}"
                reason = f"rows {first['row']} and {other['row']} are one problem with {answers}"
            elif row is not first:
                kind, reason = "duplicate", f"row {first['row']} is the same problem"
            if reason:
                found.append({"row": row["row"], "kind": kind, "problem": row["problem"], "reason": reason})
    return found


def contaminated(rows: list[Row], benchmarks: list[Row], n: int) -> list[Row]:
    """Return the rows whose problem is a benchmark's, or shares a run of `n` words with one.

    Each has its `row`, `kind` (`exact` or `n-gram`), `problem`, the `benchmark`, the
    `benchmark_problem`, and the first shared run of words as `ngram` (None if exact).
    """
    problems = {fingerprint(row["problem"]): row for row in benchmarks}
    runs = {run: row for row in benchmarks for run in ngrams(row["problem"], n)}
    found = []
    for row in rows:
        match, shared = problems.get(fingerprint(row["problem"])), None
        if match is None:
            shared = next((run for run in ngrams(row["problem"], n) if run in runs), None)
            if shared is None:
                continue
            match = runs[shared]
        told = {"benchmark": match["benchmark"], "benchmark_problem": match["problem"], "ngram": shared}
        kind = "n-gram" if shared else "exact"
        found.append({"row": row["row"], "kind": kind, "problem": row["problem"]} | told)
    return found
