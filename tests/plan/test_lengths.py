"""Lengths of texts."""

import pytest

from nested_reft.config.sections import PACKAGE, BenchmarkSource, DatasetSource
from nested_reft.data.prompts import format_prompt
from nested_reft.embedded.problems import generate
from nested_reft.model.loading import load_tokenizer
from nested_reft.plan.lengths import lengths, texts_of

TINY = PACKAGE / "embedded/tiny-28"


def test_embedded_texts_are_counted_as_the_stages_tokenize_them():
    texts = texts_of(DatasetSource(path="embedded/mixed", size=30), "qwen-math", TINY)
    tokenizer = load_tokenizer(TINY)
    rows = generate("mixed", "train", 30, seed=0)
    prompts = [format_prompt(row.problem, "qwen-math") for row in rows]
    assert list(texts.prompts) == [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    wholes = [prompt + row.solution + tokenizer.eos_token for prompt, row in zip(prompts, rows, strict=True)]
    assert list(texts.wholes) == [len(ids) for ids in tokenizer(wholes)["input_ids"]]
    assert texts.assumption == ""


def test_data_on_the_hub_are_not_downloaded():
    known = texts_of(BenchmarkSource(path="lkevinzc/math-eval", split="aime"), "none", None)
    assert known.rows == 30 and "characters per token" in known.assumption
    unknown = texts_of(DatasetSource(path="nobody/nothing", size=50), "none", None)
    assert unknown.rows == 50 and "nobody/nothing is not here" in unknown.assumption


def test_the_longest_of_a_batch_is_between_mean_and_longest():
    found = lengths([10.0] * 90 + [100.0] * 10, 3)
    assert (found.mean, found.longest) == (19.0, 100.0)
    assert found.typical == 10.0
    assert lengths(list(range(101)), 3).typical == pytest.approx(75)
