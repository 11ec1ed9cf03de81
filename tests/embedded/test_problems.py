"""The embedded problems, and the embedded model beside them."""

import re
from itertools import islice

from nested_reft.embedded.problems import KINDS, NAMES, THINGS, generate, stream
from nested_reft.grading.grade import is_correct
from tests.conftest import run


def test_embedded_splits_are_disjoint():
    for kind in KINDS:
        train = {row.problem for row in generate(kind, "train", 400, seed=0)}
        benchmark = {row.problem for row in generate(kind, "benchmark", 400, seed=0)}
        assert len(train) == len(benchmark) == 400
        assert not train & benchmark


def test_embedded_solutions_are_right():
    rows = generate("mixed", "train", 900, seed=1)
    assert all(is_correct(row.solution, row.answer) for row in rows)
    for row in rows:
        for step in row.solution.split(". ")[:-1]:
            *expressions, value = step.split("is ")[-1].split("=")
            for expression in expressions:
                if "x" not in expression:
                    assert eval(expression) == int(value), row  # our own text: digits and operators


def test_problems_of_one_cluster_are_one_calculation_in_other_words():
    def calculation(problem: str) -> str:
        if "$" in problem:
            return re.search(r"\$([^$]*=[^$]*)\$", problem).group(1)
        for word in [*NAMES, *THINGS]:
            problem = problem.replace(word, "_")
        return problem

    for kind, number in {"one-step": 137, "multi-step": 149, "algebra": 149}.items():
        rows = generate(kind, "benchmark", 150, seed=0)
        pairs = {(row.cluster, calculation(row.problem)) for row in rows}
        assert len(pairs) == len({cluster for cluster, _ in pairs}) == len({text for _, text in pairs}) == number


def test_slips_come_at_their_rate_and_keep_the_true_answer():

    rows = list(islice(stream("mixed", "train", 0, dict.fromkeys(KINDS, 0.6)), 3000))
    wrong = sum(not is_correct(row.solution, row.answer) for row in rows) / len(rows)
    assert abs(wrong - 0.6) < 0.03


def test_the_embedded_model_is_in_the_repository():
    listed = run("git", "ls-files", "nested_reft/embedded/tiny-28").stdout.split()
    names = {path.split("/")[-1] for path in listed}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
