"""Grades of completions, the command `grade`, and real answers of benchmarks."""

import json
import random
import subprocess
import sys
import time

import pytest

from nested_reft.grading import algebra
from nested_reft.grading.extract import boxed
from nested_reft.grading.grade import grade, is_correct
from nested_reft.grading.normalize import clean, in_base, name_and_value, split_unit, to_number
from tests.conftest import DATA, needs_data, run
from tests.grading.cases import EQUAL

LONGEST_S = algebra.LIMIT_S + 1


def test_the_limit_is_that_of_an_answer_and_not_of_an_element():
    """The limit holds for several hard elements, and for several accepted answers."""
    algebra.reset()
    hard = r"(x+y+z)^{34}"
    for completion, answer in (
        (r"\{(x+y+z)^{34},(x+y+w)^{34}\}", r"\{\sqrt{2}+m,\sqrt{3}+n\}"),
        (hard, [rf"\sqrt{{{n}}}+x+y+z" for n in (2, 3, 5, 7)]),
    ):
        started = time.monotonic()
        assert not is_correct(boxed(completion), answer)
        assert time.monotonic() - started < LONGEST_S
    assert grade(boxed(r"\sin(10^{10^{8}})"), [r"\sqrt{2}+1", r"\sin(10^{10^{8}})"]).how == "text"


def test_how_it_was_found_out():
    how = {answer: grade(boxed(found), answer).how for found, answer in EQUAL if isinstance(answer, str)}
    assert how["42"] == "number" and how["3,2"] == "list" and how[r"\text{Monday}"] == "text"
    assert how[r"2\sqrt{2}"] == "equal"
    assert grade("42", "42") == (False, None, "no answer")
    assert grade(boxed(r"\sqrt{3}"), r"\sqrt{2}").how == "different"
    assert grade(boxed(r"\frac{"), r"\sqrt{2}").how in ("no answer", "unparsed")


def test_the_command_grades_files_and_streams(tmp_path):
    rows = [
        {"completion": boxed("4"), "answer": "4", "id": 7},
        {"completion": "four", "answer": ["3", "4"]},
        {"completion": boxed("142"), "answer": 142.0},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finished = run("nested-reft", "grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert finished.returncode == 0 and finished.stdout == "", finished.stderr
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["correct"], row["extracted"], row["how"]) for row in graded] == [
        (True, "4", "number"),
        (False, None, "no answer"),
        (True, "142", "number"),
    ]
    assert graded[0]["id"] == 7 and all(row["seconds"] >= 0 for row in graded)
    command = [sys.executable, "-m", "nested_reft", "grade", "-"]
    piped = subprocess.run(command, input=(tmp_path / "in.jsonl").read_text(), capture_output=True, text=True)
    assert [json.loads(line)["correct"] for line in piped.stdout.splitlines()] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"completion": "x", "answer": "1"}\n{"completion', "line 2 is not JSON"),
        ('{"answer": "1"}\n', "line 1 has no text `completion`"),
        ('{"completion": "x", "answer": null}\n', "line 1 has `answer` None; give a text, a number or a list"),
        ('{"completion": "x", "answer": []}\n', "line 1 has `answer` []"),
        ("[1]\n", "line 1 has no text `completion`"),
    ],
)
def test_mistakes_are_one_sentence(content, sentence, tmp_path):
    (tmp_path / "in.jsonl").write_text(content)
    finished = run("nested-reft", "grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert finished.returncode == 2 and sentence in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert run("nested-reft", "grade", str(tmp_path / "none.jsonl")).returncode == 2


@pytest.fixture(scope="module")
def gold():
    """Return benchmark -> the lists of accepted answers."""
    import datasets

    names = ["aime", "amc", "math", "minerva", "olympiad_bench"]
    loaded = {name: datasets.load_from_disk(str(DATA / "math-eval" / name))["answer"] for name in names}
    return {name: [row if isinstance(row, list) else [row] for row in rows] for name, rows in loaded.items()}


@pytest.mark.data
@needs_data
def test_every_gold_answer_is_right_against_itself(gold):
    rows = [(boxed(answer), answers) for accepted in gold.values() for answers in accepted for answer in answers[:1]]
    assert len(rows) == 1560
    assert [row for row in rows if not is_correct(*row)] == []


def value_of(answer):
    """Return the value of an answer that is a number, perhaps as `x = 5` or in a base, or None."""
    text = split_unit(clean(str(answer)))[0]
    text = in_base(text)[0] if in_base(text) else name_and_value(text)[1]
    number = to_number(text)
    return number and number.value


def numeric(gold):
    """Yield (answer, accepted answers) of a benchmark, where the answer is a number from another row."""
    for benchmark in gold.values():
        numbers = {}
        for answer in (str(answer) for answers in benchmark for answer in answers):
            if value_of(answer) is not None:
                numbers.setdefault(value_of(answer), answer)
        for answers in benchmark:
            own = {value_of(answer) for answer in answers} - {None}
            if any("%" in str(answer) for answer in answers):
                own |= {value / 100 for value in own} | {value * 100 for value in own}
            yield from ((other, answers) for value, other in numbers.items() if value not in own and "%" not in other)


def is_numeric(answers):
    return all(value_of(answer) is not None for answer in answers)


@pytest.mark.data
@needs_data
def test_gold_answers_are_wrong_against_the_numbers_of_other_rows(gold):
    """Compare numbers with all other numbers, and answers that need the algebra with a sample of them."""
    pairs = list(numeric(gold))
    numbers = [pair for pair in pairs if is_numeric(pair[1])]
    others = [pair for pair in pairs if not is_numeric(pair[1])]
    for answer, accepted in numbers + random.Random(0).sample(others, 1_000):
        assert not is_correct(boxed(answer), accepted), (answer, accepted)


@pytest.mark.data
@needs_data
@pytest.mark.slow
@pytest.mark.nightly  # the test above compares fewer of them
def test_more_gold_answers_are_wrong_against_the_numbers_of_other_rows(gold):
    others = [pair for pair in numeric(gold) if not is_numeric(pair[1])]
    for answer, accepted in random.Random(1).sample(others, 5_000):
        assert not is_correct(boxed(answer), accepted), (answer, accepted)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(
    ("name", "share"), [("roundtrip.jsonl", 0.999), ("cases.jsonl", 0.96), ("hostile.jsonl", 1.0)]
)
def test_cases_of_other_graders(name, share):
    rows = [json.loads(line) for line in (DATA / "grading" / name).read_text().splitlines()]
    if name == "cases.jsonl":
        rows = [row for row in rows if row["contested"] is None and row["gold_answer"] and row["pred_answer"]]
        as_expected = [
            is_correct(boxed(row["pred_answer"]), row["gold_answer"]) == row["expected_ours"] for row in rows
        ]
    elif name == "roundtrip.jsonl":
        as_expected = [is_correct(row["pred"], row["gold"]) == row["expected"] for row in rows]
    else:
        rows = [row for row in rows if row["must_be_wrong"]]
        as_expected = [not is_correct(row["pred"], row["gold"]) for row in rows]
    print(name, sum(as_expected), "of", len(rows))
    assert sum(as_expected) / len(rows) >= share
