"""How many rows a training set or a benchmark has, and how long their texts are in tokens.

Local and embedded data are read, and their texts are counted with the model's tokenizer where it is local. Data on
the hub are not downloaded: their lengths come from a table, or are assumed.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nested_reft.config.sections import BenchmarkSource, DatasetSource
from nested_reft.data.prompts import format_prompt
from nested_reft.plan.costs import Lengths

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Characters per token of a text with numbers and LaTeX, with a vocabulary of 150,000 tokens: an assumption.
CHARACTERS_PER_TOKEN = 3.3
# At most this many rows of local data are counted.
SAMPLED_ROWS = 400
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0)


class HubTexts(NamedTuple):
    """The rows of a split on the hub, and the quantiles of its lengths in characters."""

    rows: int
    problem: tuple[int, ...]
    whole: tuple[int, ...]  # problem and solution


# (name on the hub, split) -> rows and lengths. Math12k has the lengths of MATH500's problems, and its solutions are
# assumed to be twice as long as its problems.
HUB_TEXTS = {
    ("ChilleD/SVAMP", "train"): HubTexts(700, (68, 129, 154, 190, 221, 267, 331), (103, 167, 191, 227, 256, 306, 372)),
    ("openai/gsm8k", "train"): HubTexts(
        7473, (42, 168, 217, 280, 361, 453, 985), (124, 367, 484, 638, 807, 985, 1689)
    ),
    ("nlile/hendrycks-MATH-benchmark", "train"): HubTexts(
        12000, (20, 92, 148, 235, 385, 569, 1733), (60, 276, 444, 705, 1155, 1707, 5199)
    ),
    ("lkevinzc/math-eval", "aime"): HubTexts(30, (114, 236, 358, 459, 570, 621, 937), ()),
    ("lkevinzc/math-eval", "amc"): HubTexts(83, (72, 165, 264, 363, 496, 743, 941), ()),
    ("lkevinzc/math-eval", "math"): HubTexts(500, (20, 92, 148, 235, 385, 569, 1733), ()),
    ("lkevinzc/math-eval", "minerva"): HubTexts(272, (58, 200, 342, 618, 821, 958, 998), ()),
    ("lkevinzc/math-eval", "olympiad_bench"): HubTexts(675, (49, 140, 226, 354, 564, 1073, 4415), ()),
}
# What is assumed of other data on the hub.
UNKNOWN_TEXTS = HubTexts(10_000, (42, 168, 217, 280, 361, 453, 985), (124, 367, 484, 638, 807, 985, 1689))


class Texts(NamedTuple):
    """The texts of a training set or a benchmark.

    Attributes:
        rows: the number of rows.
        prompts: lengths of prompts, with the template, in tokens; a sample of the rows.
        wholes: lengths of prompt and solution together; empty for a benchmark.
        assumption: what was assumed, or an empty text where the texts were counted.
    """

    rows: int
    prompts: tuple[float, ...]
    wholes: tuple[float, ...]
    assumption: str = ""

    @property
    def solution(self) -> float:
        """The mean length of a solution."""
        return float(np.mean(self.wholes) - np.mean(self.prompts))


def lengths(sample: Sequence[float], batch: int) -> Lengths:
    """Return the mean, the longest of `batch` texts on average, and the longest of a sample of lengths."""
    values = np.asarray(sample, dtype=float)
    return Lengths(float(values.mean()), float(np.quantile(values, batch / (batch + 1))), float(values.max()))


def texts_of(source: DatasetSource | BenchmarkSource, template: str, model: Path | None) -> Texts:
    """Return the number of rows and the lengths of texts.

    Args:
        source: the data.
        template: the prompt template.
        model: the folder of the model, whose tokenizer counts tokens, or None.
    """
    if not source.is_embedded and source.local_path is None:
        return hub_texts(source, template)
    return local_texts(source, template, model)


def hub_texts(source: DatasetSource | BenchmarkSource, template: str) -> Texts:
    """Return what the table says about data on the hub, or an assumption."""
    known = HUB_TEXTS.get((source.path, source.split))
    rows, problem, whole = known or UNKNOWN_TEXTS
    around = len(format_prompt("", template))

    def tokens(quantiles: tuple[int, ...]) -> tuple[float, ...]:
        sample = np.interp(np.linspace(0, 1, SAMPLED_ROWS), QUANTILES, quantiles) if quantiles else ()
        return tuple((np.asarray(sample) + around) / CHARACTERS_PER_TOKEN)

    assumption = f"{CHARACTERS_PER_TOKEN} characters per token"
    if known is None:
        assumption += f", and {rows:,} rows of the lengths of GSM8K, because {source.path} is not here"
    return Texts(len(range(rows)[source.row_slice]), tokens(problem), tokens(whole), assumption)


@cache
def local_texts(source: DatasetSource | BenchmarkSource, template: str, model: Path | None) -> Texts:
    """Return the number of rows and the lengths of local or embedded texts.

    Raises:
        UserError: the data cannot be read.
    """
    from nested_reft.data.formats import benchmark_row, training_row
    from nested_reft.data.sources import parsed_rows

    has_solutions = isinstance(source, DatasetSource)
    rows = parsed_rows(source, training_row if has_solutions else benchmark_row)
    every = max(1, len(rows) // SAMPLED_ROWS)
    sample = rows[::every]
    prompts = [format_prompt(row["problem"], template) for row in sample]
    wholes = [prompt + row["solution"] for prompt, row in zip(prompts, sample, strict=True)] if has_solutions else []
    tokenizer = tokenizer_of(model)
    assumption = "" if tokenizer else f"{CHARACTERS_PER_TOKEN} characters per token"

    def count(texts: list[str]) -> tuple[float, ...]:
        if tokenizer is None:
            return tuple(len(text) / CHARACTERS_PER_TOKEN for text in texts)
        return tuple(float(len(encoding.ids)) for encoding in tokenizer.encode_batch(texts))

    return Texts(len(rows), count(prompts), tuple(length + 1 for length in count(wholes)), assumption)  # + EOS


@cache
def tokenizer_of(model: Path | None) -> "Tokenizer | None":
    """Return the tokenizer of a model, without the library transformers, or None if its folder has none."""
    if model is None or not (model / "tokenizer.json").exists():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model / "tokenizer.json"))


def joined(benchmarks: Sequence[Texts]) -> Texts:
    """Return the benchmarks of a study as one, each with the weight of its rows."""
    rows = sum(texts.rows for texts in benchmarks)
    prompts: list[float] = []
    for texts in benchmarks:
        count = max(1, round(SAMPLED_ROWS * texts.rows / rows))
        prompts += np.quantile(texts.prompts, np.linspace(0, 1, count)).tolist() if count > 1 else [max(texts.prompts)]
    assumption = "; ".join(dict.fromkeys(filter(None, (texts.assumption for texts in benchmarks))))
    return Texts(rows, tuple(prompts), (), assumption)
