"""Training sets and benchmarks: formats, decontamination, the sentence when something cannot be had."""

import json
import re
from fractions import Fraction
from types import SimpleNamespace

import pandas as pd
import pytest

from nested_reft.config.sections import (
    BenchmarkSource,
    DatasetSource,
    Decontamination,
    Evaluation,
    ModelSource,
    Nesting,
    Prompt,
    Sft,
    Training,
)
from nested_reft.config.study import Run
from nested_reft.data.formats import benchmark_row, solve, training_row
from nested_reft.data.prepare import prepare_benchmarks, prepare_dataset, prepare_model, with_box
from nested_reft.data.prompts import TEMPLATES, format_prompt
from nested_reft.data.sources import parsed_rows, read_file
from nested_reft.errors import UserError
from nested_reft.grading.grade import is_correct
from nested_reft.records.files import checksum, read_json, read_rows
from tests.conftest import DATA, needs_data, run


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def benchmarks_file(folder, problems=("Never trained on?",)):
    path = write_lines(folder / "bench.jsonl", [{"problem": problem, "answer": "1"} for problem in problems])
    prepare_benchmarks({"b": BenchmarkSource(path=path)}, folder / "benchmarks.jsonl")
    return folder / "benchmarks.jsonl"


def prepared(folder, rows, problems=("Never trained on?",), ngram=13, **source):
    """Prepare a training set of these rows; return what was kept, what was dropped, and the manifest."""
    dataset = DatasetSource(path=write_lines(folder / "train.jsonl", rows), **source)
    out = folder / "out.jsonl"
    prepare_dataset(dataset, Decontamination(ngram=ngram), benchmarks_file(folder, problems), out)
    return read_rows(out), read_rows(folder / "out.dropped.jsonl"), read_json(folder / "out.manifest.json")


def math(problem, answer="1", solution="It is one."):
    return {"problem": problem, "solution": solution, "answer": answer}


SVAMP_ROW = {
    "Body": "A box holds 8 red and 2 blue pens. If there are 3 boxes",
    "Question": "How many pens are there?",
    "Equation": "( ( 8.0 + 2.0 ) * 3.0 )",
    "Answer": 30.0,
}
SVAMP_READ = {
    "problem": "A box holds 8 red and 2 blue pens. If there are 3 boxes, How many pens are there?",
    "solution": r"8 + 2 = 10. 10 * 3 = 30. The answer is \boxed{30}.",
    "answer": "30",
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "How many?", "answer": "Two and two is <<2+2=4>>4, times 251\n#### 1,004"},
            {
                "problem": "How many?",
                "solution": r"Two and two is 4, times 251. The answer is \boxed{1004}.",
                "answer": "1004",
            },
        ),
        (SVAMP_ROW, SVAMP_READ),
        (
            SVAMP_ROW | {"ID": "chal-0", "Type": "Addition", "Answer": "30.0", "question_concat": "left alone"},
            SVAMP_READ,
        ),
        (
            {
                "item_id": "svamp_0",
                "question": "Ida has 8 pens and loses 6. How many are left ?",
                "answer_cot": "She has 8 - 6 = 2 pens.\n\nTherefore, the answer is <2>.",
                "answer_value": "2.0",
            },
            {
                "problem": "Ida has 8 pens and loses 6. How many are left ?",
                "solution": r"She has 8 - 6 = 2 pens. The answer is \boxed{2}.",
                "answer": "2",
            },
        ),
        (
            math("Halve $1$.", r"\frac{1}{2}", r"Half is $\boxed{\frac{1}{2}}$.")
            | {"subject": "Algebra", "level": 1, "unique_id": "train/algebra/0.json"},
            math("Halve $1$.", r"\frac{1}{2}", r"Half is $\boxed{\frac{1}{2}}$."),
        ),
    ],
    ids=["GSM8K", "SVAMP file", "SVAMP hub", "mwp_ReFT", "MATH"],
)
def test_native_formats(row, expected, tmp_path):
    kept, dropped, _ = prepared(tmp_path, [row])
    assert (kept, dropped) == ([expected], [])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("There are 8 pens", "There are 8 pens. How many?"),
        (" There are 8 pens. ", "There are 8 pens. How many?"),
        ("If it rains they stay. Now 8 are here", "If it rains they stay. Now 8 are here. How many?"),
        ("Some left. If 8 stayed", "Some left. If 8 stayed, How many?"),
    ],
)
def test_a_problem_of_svamp_is_its_body_and_its_question(body, problem):
    row = {"Body": body, "Question": "How many?", "Equation": "8.0", "Answer": 8.0}
    assert training_row(row)["problem"] == problem


@pytest.mark.parametrize(
    ("equation", "steps", "value"),
    [
        ("8.0", "", 8),
        ("( 8.0 - ( 1.5 + 2.0 ) )", "1.5 + 2 = 3.5. 8 - 3.5 = 4.5.", Fraction(9, 2)),
        ("( 3.0 * ( 10.0 / 3.0 ) )", "10 / 3 = 10/3. 3 * (10/3) = 10.", 10),
        ("2.0 - ( 1.0 - 4.0 )", "1 - 4 = -3. 2 - (-3) = 5.", 5),
        ("0.1 + 0.2", "0.1 + 0.2 = 0.3.", Fraction(3, 10)),
    ],
)
def test_an_equation_is_solved_step_by_step_and_exactly(equation, steps, value):
    assert solve(equation) == (steps, value)


@pytest.mark.parametrize("equation", ["", "8 -", "x + 1", "2 ** 9", "1 / ( 2 - 2 )", "True + 1", "abs(2)"])
def test_an_equation_is_never_more_than_arithmetic(equation):
    with pytest.raises(ValueError, match=r"has the equation .* which cannot be computed"):
        solve(equation)


@pytest.mark.parametrize(
    ("solution", "answer", "expected"),
    [
        (r"So $\boxed{7}$ pens.", "7", r"So $\boxed{7}$ pens."),
        (r"So $\boxed{7}$ pens.", "8", r"So ${7}$ pens. The answer is \boxed{8}."),
        (r"First $\boxed{3}$, then $\boxed{7}$.", "7", r"First ${3}$, then ${7}$. The answer is \boxed{7}."),
        (r"It is $\boxed 7$", "7", r"It is $ 7$ The answer is \boxed{7}."),
        ("It is 7\n", "7", r"It is 7. The answer is \boxed{7}."),
    ],
)
def test_a_solution_boxes_the_answer_and_nothing_else(solution, answer, expected):
    assert with_box(solution, answer) == expected
    assert is_correct(expected, answer)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (142.0, ["142"]),
        (0.5, ["0.5"]),
        (7, ["7"]),
        (["1.6\n"], ["1.6"]),
        (["x+1\n", "1+x"], ["x+1", "1+x"]),
        (["$(1,2)$"], ["(1,2)"]),
        (r"\$18.90", [r"\$18.90"]),
        ("$1$,$2$", ["$1$,$2$"]),
    ],
)
def test_gold_answers_are_a_list_of_texts(answer, accepted):
    assert benchmark_row({"problem": "p", "answer": answer}) == {"problem": "p", "answer": accepted}


def test_a_training_format_serves_as_a_benchmark():
    read = benchmark_row({"question": "How many?", "answer": "Four.\n#### 4"})
    assert read == {"problem": "How many?", "answer": ["4"]}


def test_benchmark_problems_are_dropped_from_training_sets(tmp_path):
    rows = [math(problem) for problem in ("never  TRAINED\n on?", "Never trained on!", "Find $3x+4$.", "Find $3x-4$.")]
    kept, dropped, manifest = prepared(tmp_path, rows, ["Other", "Never trained on?", "Find 3x + 4."])
    assert [row["problem"] for row in kept] == ["Never trained on!", "Find $3x-4$."]
    exact = {"kind": "exact", "benchmark": "b", "ngram": None}
    assert dropped == [
        exact | {"row": 1, "problem": "never  TRAINED\n on?", "benchmark_problem": "Never trained on?"},
        exact | {"row": 3, "problem": "Find $3x+4$.", "benchmark_problem": "Find 3x + 4."},
    ]
    assert manifest["rows"] == {"read": 4, "duplicates": 0, "contradictions": 0, "dropped": 2, "kept": 2}


def test_problems_that_share_a_run_of_words_with_a_benchmark_are_dropped(tmp_path):
    benchmark = "Ida counts five birds, six fish and seven cats on her way home. How many?"
    shared = "Tom counts FIVE birds; six \N{LATIN SMALL LIGATURE FI}sh and seven"  # seven words at its end
    for ngram, found in ((7, ["counts five birds six fish and seven"]), (8, [])):
        kept, dropped, manifest = prepared(tmp_path, [math(shared), math("Unlike.")], [benchmark], ngram)
        assert [row["ngram"] for row in dropped] == found
        assert [row["kind"] for row in dropped] == ["n-gram"] * len(found)
        assert all((row["problem"], row["benchmark_problem"]) == (shared, benchmark) for row in dropped)
        assert manifest["rows"]["dropped"] == len(found) and manifest["rows"]["kept"] == len(kept) == 2 - len(found)


def test_repeats_and_contradictions_are_dropped_and_listed(tmp_path):
    rows = [
        math("Once."),
        math("Twice.", "0.50"),
        math("twice .", "1/2"),
        math("Torn.", "3"),
        math("Torn.", "4"),
        math("torn.", "3"),
        SVAMP_ROW | {"Answer": 31.0},
    ]
    kept, dropped, manifest = prepared(tmp_path, rows)
    assert [row["problem"] for row in kept] == ["Once.", "Twice."]
    torn = "rows 4 and 5 are one problem with the answers 3 and 4"
    assert [(row["row"], row["kind"], row["reason"]) for row in dropped] == [
        (3, "duplicate", "row 2 is the same problem"),
        (4, "contradiction", torn),
        (5, "contradiction", torn),
        (6, "contradiction", torn),
        (7, "contradiction", "its equation gives 30, and not 31"),
    ]
    assert manifest["rows"] == {"read": 7, "duplicates": 1, "contradictions": 4, "dropped": 0, "kept": 2}


def test_the_manifest_tells_the_files_apart(tmp_path):
    _, _, manifest = prepared(tmp_path, [math("a"), math("b")], revision="v1")
    assert manifest["revision"] == "v1"
    files = {"rows": "out.jsonl", "dropped": "out.dropped.jsonl", "benchmarks": "benchmarks.jsonl"}
    assert manifest["sha256"] == {name: checksum(tmp_path / file) for name, file in files.items()}
    assert read_json(tmp_path / "benchmarks.manifest.json") == {
        "rows": {"b": 1},
        "revision": {"b": None},
        "sha256": checksum(tmp_path / "benchmarks.jsonl"),
    }
    assert prepared(tmp_path, [math("a"), math("c")])[2]["sha256"]["rows"] != manifest["sha256"]["rows"]


GOOD = json.dumps(math("p"))
MISTAKES = {
    "no answer": (
        '{"problem": "p", "solution": "s"}',
        "row 1 has the columns problem, solution, but needs problem",
    ),
    "empty answer": (f"{GOOD}\n{json.dumps(math('q', ' '))}", "row 2 has an empty `answer`; fill it in"),
    "null answer": (json.dumps(math("p", None)), "row 1 has an empty `answer`"),
    "missing number": ('{"problem": "p", "solution": "s", "answer": NaN}', "row 1 has an empty `answer`"),
    "list as answer": (json.dumps(math("p", ["1"])), r"row 1 has \['1'\] as `answer`, which is no text"),
    "yes": (json.dumps(math("p", True)), "row 1 has True as `answer`, which is no text"),
    "number": (json.dumps(math(12)), "row 1 has 12 as `problem`, which is no text; correct it"),
    "list": (f"{GOOD}\n{json.dumps(math('q', '1', ['s']))}", r"row 2 has \['s'\] as `solution`, which is no text"),
    "no object": (f'{GOOD}\n"q"', "row 2 is 'q' and no object with columns"),
    "broken line": (f'{GOOD}\n\n{{"problem"', "line 3 is not JSON"),
    "broken list": (f'[{GOOD},\n{{"problem"]', "line 2 is not JSON"),
    "no rows": ("\n", "has no rows; choose another file"),
    "no mark": ('{"question": "p", "answer": "4"}', "row 1 has an `answer` without the last line `#### value`"),
    "mark alone": ('{"question": "p", "answer": "#### 4"}', "row 1 has an empty `answer`"),
    "nothing after the mark": ('{"question": "p", "answer": "Four.\\n####"}', "row 1 has an empty `answer`"),
    "no number": (json.dumps(SVAMP_ROW | {"Answer": "many"}), "row 1 has 'many' as `Answer`, which is no number"),
    "no equation": (json.dumps(SVAMP_ROW | {"Equation": "a + b"}), "row 1 has the equation 'a . b', which cannot be"),
    "all in a benchmark": (json.dumps(math("Never trained on?")), "no row is left of 1, .* and 1 are in a benchmark"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_training_set_is_one_sentence_and_nothing_is_written(mistake, tmp_path):
    content, words = MISTAKES[mistake]
    (tmp_path / "train.jsonl").write_text(content)
    before = {benchmarks_file(tmp_path), *tmp_path.iterdir()}
    source = DatasetSource(path=str(tmp_path / "train.jsonl"))
    with pytest.raises(UserError, match=f"^{re.escape(source.path)}: {words}") as error:
        prepare_dataset(source, Decontamination(), tmp_path / "benchmarks.jsonl", tmp_path / "out.jsonl")
    assert "\n" not in str(error.value)
    assert set(tmp_path.iterdir()) == before


def test_a_mistake_in_a_dataset_ends_the_command_with_exit_code_2(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", [math("p"), math("q", "")])
    settings = {"dataset": {"path": path}, "decontamination": {}}
    arguments = {"settings": json.dumps(settings), "benchmarks": str(benchmarks_file(tmp_path))}
    arguments["out"] = str(tmp_path / "out.jsonl")
    options = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    finished = run("nested-reft", "prepare", "dataset", *options)
    assert finished.returncode == 2
    assert finished.stderr == f"Error: {path}: row 2 has an empty `answer`; fill it in or remove the row\n"
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_is_not_text_is_one_sentence(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(UserError, match=r"train\.parquet: is not UTF-8 text; give JSON, JSON lines, or the folder"):
        read_file(tmp_path / "train.parquet")


HOSTILE = r"Let {problem} be $\frac{1}{2}$, {0} and {x!r:>9}; what is {{problem}} %s \boxed{}?"


@pytest.mark.parametrize("template", TEMPLATES)
def test_braces_of_a_problem_survive_every_template(template):
    around = format_prompt("@", template).split("@")
    assert len(around) == 2
    assert format_prompt(HOSTILE, template) == HOSTILE.join(around)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_stage_puts_a_problem_in_the_same_words(template, tmp_path, monkeypatch):
    from nested_reft.stages import evaluate as evaluation
    from nested_reft.stages import sft, train

    class Seen(Exception):
        pass

    def seen(prompts):
        raise Seen(prompts)

    write_lines(tmp_path / "rows.jsonl", [math(HOSTILE) | {"benchmark": "b"}])
    config = SimpleNamespace(get_text_config=dict)
    loaded = SimpleNamespace(config=config), SimpleNamespace(eos_token="<end>")
    monkeypatch.setattr(train, "load_model", lambda *_: loaded)
    monkeypatch.setattr(train.Dataset, "from_list", lambda rows: seen([row["prompt"] for row in rows]))
    monkeypatch.setattr(train, "build_trainer", lambda *rest: seen([row["prompt"] for row in rest[5]]))
    monkeypatch.setattr(evaluation, "generate_completions", lambda path, prompts, settings: seen(prompts))
    prompt, data = Prompt(template=template), tmp_path / "rows.jsonl"
    record = SimpleNamespace(out=tmp_path, checkpoints=tmp_path)
    cell = Run(model="m", dataset="d", skip_ratio=0.0, mitigation="base", seed=0)
    reft = Training(bf16=False, prompts_per_step=1)
    stages = [
        lambda: sft.sft(Sft(bf16=False), prompt, tmp_path, 0, data, record),
        lambda: train.train(reft, Nesting(), prompt, cell, tmp_path, data, record),
        lambda: evaluation.evaluate(Evaluation(), prompt, "m", data, record),
    ]
    for stage in stages:
        with pytest.raises(Seen) as caught:
            stage()
        assert caught.value.args[0] == [format_prompt(HOSTILE, template)]


def test_an_unreachable_hub_is_one_sentence_and_exit_code_2(tmp_path):
    settings = {"path": "Qwen/Qwen2.5-Math-1.5B-Instruct"}
    finished = run(
        "nested-reft", "prepare", "model", "--settings", json.dumps(settings), "--out", str(tmp_path / "m.json")
    )
    assert finished.returncode == 2
    assert "could not fetch 'Qwen/Qwen2.5-Math-1.5B-Instruct' from the hub" in finished.stderr
    assert "give its local path as `path` instead" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "m.json").exists()
    with pytest.raises(UserError, match="could not fetch 'openai/gsm8k'"):
        source = DatasetSource(path="openai/gsm8k", config_name="main")
        prepare_dataset(source, Decontamination(), benchmarks_file(tmp_path), tmp_path / "out.jsonl")


def test_a_local_model_is_noted_with_its_shape(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "hidden_size": 8}))
    prepare_model(ModelSource(path=str(tmp_path)), tmp_path / "model.json")
    assert read_json(tmp_path / "model.json") == {"path": str(tmp_path), "num_layers": 3, "width": 8}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"problem": "p", "answer": "1"}\n\n{"problem"', "line 3 is not JSON"),
        ('{"problem": "p", "answer": null}\n', "row 1 has an empty `answer`"),
        ('{"problem": "p", "answer": []}\n', "row 1 has an empty `answer`"),
        ('{"problem": "p", "answer": ["1", ""]}\n', "row 1 has an empty `answer`"),
        ('{"problem": 7, "answer": "1"}\n', "row 1 has 7 as `problem`, which is no text"),
        ('{"problem": "p"}\n', "row 1 has the columns problem, but needs"),
        ("", "has no rows"),
    ],
)
def test_a_broken_benchmark_is_one_sentence(content, words, tmp_path):
    (tmp_path / "bench.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        prepare_benchmarks({"b": BenchmarkSource(path=str(tmp_path / "bench.jsonl"))}, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_downloaded_dataset_is_read_from_its_folder(tmp_path):
    import datasets

    (tmp_path / "hub").mkdir()
    rows = datasets.Dataset.from_list([{"problem": "p", "answer": 142.0}])
    rows.to_parquet(tmp_path / "hub" / "test-00000-of-00001.parquet")
    datasets.DatasetDict({"amc": rows}).save_to_disk(tmp_path / "disk")
    sources = {
        "hub": BenchmarkSource(path=str(tmp_path / "hub")),
        "disk": BenchmarkSource(path=str(tmp_path / "disk"), split="amc"),
    }
    prepare_benchmarks(sources, tmp_path / "out.jsonl")
    assert [row["answer"] for row in read_rows(tmp_path / "out.jsonl")] == [["142"], ["142"]]
    with pytest.raises(UserError, match="split 'math' cannot be read"):
        wrong = BenchmarkSource(path=str(tmp_path / "disk"), split="math")
        prepare_benchmarks({"disk": wrong}, tmp_path / "out.jsonl")
    empty = datasets.Dataset.from_list([{"problem": "p", "answer": "1"}, {"problem": "q", "answer": None}])
    datasets.DatasetDict({"aime": empty}).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match=r"empty, split 'aime': row 2 has an empty `answer`"):
        torn = BenchmarkSource(path=str(tmp_path / "empty"), split="aime")
        prepare_benchmarks({"torn": torn}, tmp_path / "torn.jsonl")


def test_embedded_splits_are_disjoint():
    from nested_reft.embedded.problems import KINDS, generate

    for kind in KINDS:
        train = {row.problem for row in generate(kind, "train", 400, seed=0)}
        benchmark = {row.problem for row in generate(kind, "benchmark", 400, seed=0)}
        assert len(train) == len(benchmark) == 400
        assert not train & benchmark


def test_embedded_solutions_are_right():
    from nested_reft.embedded.problems import generate

    rows = generate("mixed", "train", 900, seed=1)
    assert all(is_correct(row.solution, row.answer) for row in rows)
    for row in rows:
        for step in row.solution.split(". ")[:-1]:
            *expressions, value = step.split("is ")[-1].split("=")
            for expression in expressions:
                if "x" not in expression:
                    assert eval(expression) == int(value), row  # our own text: digits and operators


def test_slips_come_at_their_rate_and_keep_the_true_answer():
    from itertools import islice

    from nested_reft.embedded.problems import KINDS, stream

    rows = list(islice(stream("mixed", "train", 0, dict.fromkeys(KINDS, 0.6)), 3000))
    wrong = sum(not is_correct(row.solution, row.answer) for row in rows) / len(rows)
    assert abs(wrong - 0.6) < 0.03


@pytest.fixture(scope="module")
def real_benchmarks(tmp_path_factory):
    """Return the file of the five real benchmarks."""
    out = tmp_path_factory.mktemp("real") / "benchmarks.jsonl"
    sources = {name: BenchmarkSource(path=str(DATA / "math-eval"), split=name) for name in REAL_BENCHMARKS}
    prepare_benchmarks(sources, out)
    return out


REAL_BENCHMARKS = {"aime": 30, "amc": 83, "math": 500, "minerva": 272, "olympiad_bench": 675}


@needs_data
def test_real_benchmarks_are_read_completely(real_benchmarks, tmp_path):
    benchmarks = pd.DataFrame(read_rows(real_benchmarks))
    assert benchmarks["benchmark"].value_counts(sort=False).to_dict() == REAL_BENCHMARKS
    assert benchmarks["problem"].str.strip().all()
    benchmarks.to_parquet(tmp_path / "records.parquet")  # answers are of one type
    answers = benchmarks["answer"].explode()
    assert (answers.str.strip() == answers).all() and answers.all()
    amc = benchmarks.loc[benchmarks["benchmark"] == "amc", "answer"]
    assert all(re.fullmatch(r"-?\d+(\.\d*[1-9])?", answer) for (answer,) in amc)
    enclosed = benchmarks.loc[benchmarks["benchmark"] == "olympiad_bench", "answer"].str[0]
    assert not enclosed.str.fullmatch(r"\$[^$]*\$").any()


@needs_data
@pytest.mark.parametrize(
    ("path", "rows", "lost"),
    [
        ("gsm8k/train.jsonl", 7473, {}),
        ("gsm8k/test.jsonl", 1319, {}),
        ("svamp/SVAMP.json", 1000, {"contradictions": 1}),  # the one whose equation does not give its answer
        ("svamp/svamp_nl.json", 3076, {"duplicates": 134, "contradictions": 2}),  # 3.333 and 3.33333
    ],
)
def test_real_training_sets_are_read_completely_and_teach_their_answers(path, rows, lost, real_benchmarks, tmp_path):
    source = DatasetSource(path=str(DATA / path))
    everything = parsed_rows(source, training_row)
    assert len(everything) == rows
    wrong = [
        row["row"]
        for row in everything
        if not is_correct(with_box(row["solution"], row["answer"]), row["answer"]) or not row["problem"].strip()
    ]
    assert not wrong
    prepare_dataset(source, Decontamination(), real_benchmarks, tmp_path / "out.jsonl")
    kept = read_rows(tmp_path / "out.jsonl")
    counts = {"read": rows, "duplicates": 0, "contradictions": 0, "dropped": 0} | lost
    counts["kept"] = rows - sum(lost.values())
    assert read_json(tmp_path / "out.manifest.json")["rows"] == counts
    assert len(kept) == counts["kept"]
    assert len(read_rows(tmp_path / "out.dropped.jsonl")) == rows - len(kept)
    for row in kept:
        assert row.keys() == {"problem", "solution", "answer"} and all(row.values())
        assert row["solution"].endswith(f"\\boxed{{{row['answer']}}}.")
        assert "<<" not in row["solution"] and "####" not in row["solution"]
        assert "answer is <" not in row["solution"]


@needs_data
def test_real_training_sets_serve_as_benchmarks():
    rows = parsed_rows(BenchmarkSource(path=str(DATA / "gsm8k/test.jsonl")), benchmark_row)
    assert len(rows) == 1319
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", answer) for row in rows for answer in row["answer"])


def test_the_embedded_model_is_in_the_repository():
    listed = run("git", "ls-files", "nested_reft/embedded/tiny-28").stdout.split()
    names = {path.split("/")[-1] for path in listed}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
