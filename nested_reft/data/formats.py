r"""Training sets and benchmarks: from the hub, a local path or the embedded generator to JSON lines.

A training row has `problem`, `solution` (a chain of thought that ends in `\boxed{answer}`) and
`answer`; a benchmark row has `benchmark`, `problem` and `answer`, a list of which any is right. Models
are fetched here too, so that all that needs a network happens before the first training job.
"""

import ast
import json
import operator
import re
import unicodedata
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from nested_reft.config.sections import (
    BenchmarkSource,
    ConfigError,
    DatasetSource,
    Decontamination,
    ModelSource,
    Source,
)
from nested_reft.embedded.problems import generate
from nested_reft.grading.compare import BOX, is_correct
from nested_reft.records.mlflow_mirror import checksum, read_json, read_rows, write_json, write_rows

Row = dict[str, Any]

# The columns by which a training set is recognised. Benchmarks need no solution.
MATH = ("problem", "solution", "answer")
GSM8K = ("question", "answer")
SVAMP = ("Body", "Question", "Equation", "Answer")
MWP_REFT = ("question", "answer_cot", "answer_value")

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
ANSWER_SENTENCE = re.compile(r"\s*(Therefore, )?the answer is:? <[^<>]*>\.?\s*$", re.IGNORECASE)
OPEN_CONDITION = re.compile(r"\b(if|when)\b[^.?!]*$", re.IGNORECASE)

OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


# ---- reading -----------------------------------------------------------------------------------------


def unreachable(source: Source, error: Exception) -> ConfigError:
    """Return the sentence for something that the hub did not give."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"could not fetch {source.path!r} from the hub ({type(error).__name__}: {reason}); "
        "download it where there is a network and give its local path as `path` instead"
    )


def load_rows(source: DatasetSource | BenchmarkSource) -> list[Any]:
    """Return the raw rows of embedded data, a JSON or JSON-lines file, a `save_to_disk` folder, or a hub dataset.

    Raises:
        ConfigError: the source cannot be fetched or read.
    """
    if source.is_embedded:
        assert source.size is not None
        split: Any = "train" if isinstance(source, DatasetSource) else "benchmark"
        return [vars(problem) for problem in generate(source.name, split, source.size, seed=0)]
    path = source.local_path
    if path is not None and path.is_file():
        return read_file(path)
    import datasets

    config_name = source.config_name if isinstance(source, DatasetSource) else None
    try:
        if path is not None and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
            return list(loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded)
        return list(datasets.load_dataset(source.path, config_name, split=source.split, revision=source.revision))
    except Exception as error:
        if path is None:
            raise unreachable(source, error) from error
        reason = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"{source.path}: split {source.split!r} cannot be read ({type(error).__name__}: {reason}); "
            "give a JSON-lines file, a `save_to_disk` folder or a downloaded dataset"
        ) from error


def read_file(path: Path) -> list[Any]:
    """Return the rows of a JSON file that holds a list, or of a JSON-lines file.

    Raises:
        ConfigError: it is not text, or not JSON; the sentence names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; give JSON, JSON lines, or the folder of a dataset") from None
    is_list = text.lstrip().startswith("[")
    rows = []
    for number, line in enumerate([text] if is_list else text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                where = error.lineno if is_list else number
                raise ConfigError(f"{path}: line {where} is not JSON ({error.msg}); correct it") from None
    return rows[0] if is_list else rows


def parsed_rows(source: DatasetSource | BenchmarkSource, parse: Callable[[Row], Row]) -> list[Row]:
    """Return the first `size` rows, each brought into our format by `parse` and with its number as `row`.

    Raises:
        ConfigError: a row that `parse` refuses, named; or no rows at all.
    """
    in_one_file = source.local_path is not None and source.local_path.is_file()
    where = source.path if in_one_file else f"{source.path}, split {source.split!r}"
    rows = []
    for number, raw in enumerate(load_rows(source)[: source.size], start=1):
        try:
            if not isinstance(raw, dict):
                raise ValueError(f"is {raw!r:.60} and no object with columns; correct it")
            rows.append({"row": number} | parse(raw))
        except ValueError as error:
            raise ConfigError(f"{where}: row {number} {error}") from None
    if not rows:
        raise ConfigError(f"{where}: has no rows; choose another file or split")
    return rows


# ---- native formats: what raises ValueError here is the end of a sentence that begins with file and row ----


def text_of(row: Row, column: str) -> str:
    """Return the text of a column; raise ValueError for anything else, and for empty text."""
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise ValueError(f"has {text!r:.60} as `{column}`, which is no text; correct it")
    if not text.strip():
        raise ValueError(f"has an empty `{column}`; fill it in or remove the row")
    return text


def answer_of(row: Row, column: str) -> str:
    """Return an answer, text or number, as text: `142.0` is `142`, and `$x$` is `x`.

    Raises:
        ValueError: it is empty, or neither text nor a number.
    """
    value = row[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = "" if value != value else str(value)  # a missing number is read as NaN
    text = text_of({column: value}, column).strip()
    return re.sub(r"^\$([^$]*[^$\\])\$$", r"\1", text)


def number_of(row: Row, column: str) -> str:
    """Return an answer that is a number, without the `.0` of an integer; raise ValueError if it is none."""
    text = answer_of(row, column)
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"has {text!r:.60} as `{column}`, which is no number; correct it") from None
    return re.sub(r"\.0*$", "", text)


def shown(value: Fraction) -> str:
    """Return a number as people write it: an integer, a decimal if it is short, or a fraction."""
    if value.denominator == 1 or 10**6 % value.denominator:
        return str(value)
    return format(Decimal(value.numerator) / value.denominator, "f")


def operand(value: Fraction) -> str:
    """Return a number as it stands beside an operator: in parentheses if it has a sign or is a fraction."""
    text = shown(value)
    return text if re.fullmatch(r"[\d.]+", text) else f"({text})"


def solve(equation: str) -> tuple[str, Fraction]:
    """Return an expression such as `( ( 8.0 + 2.0 ) * 3.0 )` step by step, `8 + 2 = 10. 10 * 3 = 30.`, and its value.

    Raises:
        ValueError: it is more than numbers, parentheses and the four operations, or divides by zero.
    """
    steps = []

    def value_of(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Fraction(str(number))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -value_of(inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                sign, apply = OPERATORS[type(op)]
                first, second = value_of(left), value_of(right)
                result = apply(first, second)
                steps.append(f"{operand(first)} {sign} {operand(second)} = {shown(result)}.")
                return result
        raise ValueError

    try:
        value = value_of(ast.parse(equation.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        raise ValueError(f"has the equation {equation!r:.60}, which cannot be computed; correct it") from None
    return " ".join(steps), value


def training_row(row: Row) -> Row:
    r"""Return `problem`, `solution` and `answer` of a row of MATH (and ours), GSM8K, SVAMP or mwp_ReFT.

    GSM8K's solutions lose their calculator marks `<<a=b>>` and the last line `#### answer`, mwp_ReFT's
    the sentence `the answer is <answer>`. SVAMP has an equation in place of a solution, and its steps
    become one; where they lead to another answer, the row also has a `flaw`. The box comes later.

    Raises:
        ValueError: a column is missing, empty or of a wrong type.
    """
    if row.keys() >= set(MATH):
        return {
            "problem": text_of(row, "problem"),
            "solution": text_of(row, "solution"),
            "answer": answer_of(row, "answer"),
        }
    if row.keys() >= set(MWP_REFT):
        return {
            "problem": text_of(row, "question"),
            "solution": ANSWER_SENTENCE.sub("", text_of(row, "answer_cot")),
            "answer": number_of(row, "answer_value"),
        }
    if row.keys() >= set(SVAMP):
        body, answer = text_of(row, "Body").strip(), number_of(row, "Answer")
        link = "" if body.endswith((".", "?", "!", ",")) else "," if OPEN_CONDITION.search(body) else "."
        steps, value = solve(text_of(row, "Equation"))
        problem = f"{body}{link} {text_of(row, 'Question').strip()}"
        flaw = None if value == Fraction(answer) else f"its equation gives {shown(value)}, and not {answer}"
        return {"problem": problem, "solution": steps, "answer": answer, "flaw": flaw}
    if row.keys() >= set(GSM8K):
        solution, mark, answer = text_of(row, "answer").rpartition("####")
        if not mark:
            raise ValueError("has an `answer` without the last line `#### value` of GSM8K; add it")
        return {
            "problem": text_of(row, "question"),
            "solution": CALCULATOR_MARK.sub("", text_of({"answer": solution}, "answer")),
            "answer": answer_of({"answer": answer.replace(",", "")}, "answer"),
        }
    formats = {"MATH; a benchmark needs no solution": MATH, "GSM8K": GSM8K, "SVAMP": SVAMP, "mwp_ReFT": MWP_REFT}
    wanted = " or ".join(f"{', '.join(columns)} ({name})" for name, columns in formats.items())
    raise ValueError(f"has the columns {', '.join(row)}, but needs {wanted}; rename or add what is missing")


def benchmark_row(row: Row) -> Row:
    """Return `problem` and `answer`, a list of texts of which any is right, of a row of a benchmark.

    That is the protocol of understand-r1-zero, whose Minerva and Olympiad have lists and whose AMC has
    floats. A training set in another format than MATH's serves as a benchmark too.

    Raises:
        ValueError: a column is missing, empty or of a wrong type.
    """
    if row.keys() >= {"problem", "answer"}:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        accepted = [answer_of({"answer": answer}, "answer") for answer in answers or [None]]
        return {"problem": text_of(row, "problem"), "answer": accepted}
    read = training_row(row)
    return {"problem": read["problem"], "answer": [read["answer"]]}


def with_box(solution: str, answer: str) -> str:
    r"""Return the solution with the answer in its only box.

    MATH's solutions have their box already. One that holds something else, or several, would teach the
    model to box what is not the answer: those are opened, and a sentence with the answer follows.
    """
    if solution.count("\\boxed") == 1 and is_correct(solution, answer):
        return solution
    opened = solution.replace("\\boxed", "").strip()
    stop = "." if opened[-1:].isalnum() else ""
    return f"{opened}{stop} The answer is {BOX}{answer}}}.".lstrip()


# ---- what a training set must not hold --------------------------------------------------------------


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


# ---- the stages --------------------------------------------------------------------------------------


def prepare_benchmarks(sources: dict[str, BenchmarkSource], out: Path) -> None:
    """Write all benchmarks into one file, with a manifest of counts, revisions and its checksum beside it.

    Raises:
        ConfigError: a source cannot be had, or a row of it is wrong.
    """
    rows = [
        {"benchmark": name, "problem": row["problem"], "answer": row["answer"]}
        for name, source in sources.items()
        for row in parsed_rows(source, benchmark_row)
    ]
    write_rows(out, rows)
    manifest = {
        "rows": {name: sum(row["benchmark"] == name for row in rows) for name in sources},
        "revision": {name: source.revision for name, source in sources.items()},
        "sha256": checksum(out),
    }
    write_json(out.with_suffix(".manifest.json"), manifest)


def prepare_dataset(source: DatasetSource, decontamination: Decontamination, benchmarks: Path, out: Path) -> None:
    """Write the training set without repeats, contradictions and problems that a benchmark holds.

    Beside it come `.dropped.jsonl`, a row for each that was left out (`flawed`, `contaminated`), and
    `.manifest.json`: counts, revision, and the checksums of these two and of the benchmarks.

    Raises:
        ConfigError: the source cannot be had, a row of it is wrong, or nothing is left.
    """
    rows = parsed_rows(source, training_row)
    own = flawed(rows)
    flaws = {row["row"] for row in own}
    sound = [row for row in rows if row["row"] not in flaws]
    overlapping = contaminated(sound, read_rows(benchmarks), decontamination.ngram)
    overlaps = {row["row"] for row in overlapping}
    kept = [row for row in sound if row["row"] not in overlaps]
    if not kept:
        raise ConfigError(
            f"{source.path}: no row is left of {len(rows)}, of which {len(own)} are repeats or contradictions and "
            f"{len(overlapping)} are in a benchmark; train on another dataset, or raise decontamination.ngram"
        )
    dropped = out.with_suffix(".dropped.jsonl")
    write_rows(dropped, sorted(own + overlapping, key=lambda row: row["row"]))
    finished = [
        {
            "problem": row["problem"],
            "solution": with_box(row["solution"], row["answer"]),
            "answer": row["answer"],
        }
        for row in kept
    ]
    write_rows(out, finished)
    duplicates = sum(row["kind"] == "duplicate" for row in own)
    counts = {
        "read": len(rows),
        "duplicates": duplicates,
        "contradictions": len(own) - duplicates,
        "dropped": len(overlapping),
        "kept": len(kept),
    }
    manifest = {
        "rows": counts,
        "revision": source.revision,
        "sha256": {"rows": checksum(out), "dropped": checksum(dropped), "benchmarks": checksum(benchmarks)},
    }
    write_json(out.with_suffix(".manifest.json"), manifest)


def prepare_model(source: ModelSource, out: Path) -> None:
    """Fetch the model if it is not here, and write where it is, its depth and its width."""
    path = source.local_path
    if path is None:
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            path = Path(snapshot_download(source.path, revision=source.revision, allow_patterns=wanted))
        except Exception as error:
            raise unreachable(source, error) from error
    config = read_json(path / "config.json")
    write_json(out, {"path": str(path), "num_layers": config["num_hidden_layers"], "width": config["hidden_size"]})
