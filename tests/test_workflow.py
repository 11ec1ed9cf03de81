"""The workflow: its jobs, its lock, what reruns when, and what a finished study leaves behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nested_reft.config import layout
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import RUN, Study, expand_grid
from nested_reft.config.templates import TEMPLATES
from nested_reft.records.files import read_json, read_rows, read_versioned_json
from nested_reft.records.mlflow_mirror import open_store
from nested_reft.records.mlflow_views import result_names
from nested_reft.study.jobs import STAGES
from tests.conftest import ROOT, SMOKE_GRID, needs_data, run, snakemake

TRAINS = "results/smoke/train/model~tiny-28/dataset~mixed"


def jobs(printed: str) -> Counter:
    """Return rule -> number of jobs from Snakemake's table."""
    table = printed.split("Job stats:")[1].split("\n\n")[0] if "Job stats:" in printed else ""
    found = Counter({name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)})
    del found["total"], found["all"]
    return found


@pytest.fixture()
def configured(tmp_path):
    """Return a function that writes the smoke study with changes and gives its path."""

    def write(**changes):
        study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
        study["grid"]["mitigation"] = ["base", "practical", "retrace"]  # as in the finished study
        for path, value in changes.items():
            section, name = path.split("__")
            study.setdefault(section, {})[name] = value
        reordered = {name: study[name] for name in sorted(study, reverse=True)}
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump(reordered, sort_keys=False))
        return str(tmp_path / "changed.yaml")

    return write


def test_paper_study_has_6_sft_60_train_and_68_evaluate_jobs(tmp_path):
    planned = snakemake(tmp_path, "-n", "--configfile", str(ROOT / "config/paper.yaml"))
    assert planned.returncode == 0, planned.stderr
    counted = jobs(planned.stdout + planned.stderr)
    assert (counted["sft"], counted["train"], counted["evaluate"]) == (6, 60, 68)
    assert counted["measure_speed"] == 2


def test_a_fresh_directory_runs_the_whole_embedded_study(tmp_path):
    planned = snakemake(tmp_path, "-n", "--configfile", str(ROOT / "config/config.yaml"))
    counted = jobs(planned.stdout + planned.stderr)
    assert (counted["sft"], counted["train"], counted["evaluate"], counted["analyse"]) == (1, 10, 12, 1)


def test_workflow_is_lint_clean():
    linted = run(sys.executable, "workflow/lint.py")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_linter_of_the_workflow_reports_other_findings(tmp_path):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copy(ROOT / "Snakefile", tmp_path)
    rules = tmp_path / "workflow/rules/tracking.smk"
    rules.write_text(rules.read_text().replace('    log:\n        f"{LOGS}/tracking_store.log",\n', ""))
    linted = run(sys.executable, "workflow/lint.py", cwd=tmp_path)
    assert linted.returncode == 1
    assert "No log directive defined" in linted.stdout


def heed_sigint() -> None:
    """Let this process be interrupted by SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def running(directory: Path, config: Path | str = ROOT / "config/smoke.yaml") -> Iterator[subprocess.Popen[bytes]]:
    """Run a study until it has locked its directory, and kill it with all of its jobs at the end."""
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(directory), "--cores", "1", "--configfile", str(config)]
    log = (directory / "first.log").open("w")
    # A shell lets the programs that it starts in the background ignore SIGINT, and their children inherit that.
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, preexec_fn=heed_sigint)
    try:
        deadline = time.monotonic() + 60
        while not list(directory.glob(".snakemake/locks/*.lock")):
            assert process.poll() is None and time.monotonic() < deadline, (directory / "first.log").read_text()
            time.sleep(0.1)
        yield process
    finally:
        with suppress(ProcessLookupError):  # a test may have killed it, and its jobs may have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_snakemake_is_refused_while_one_runs_and_reading_is_allowed(tmp_path):
    smoke = ["--configfile", str(ROOT / "config/smoke.yaml")]
    with running(tmp_path) as first:
        for options in ([], ["--unlock"]):
            second = snakemake(tmp_path, *smoke, *options)
            assert second.returncode == 2
            (sentence,) = [line for line in second.stderr.splitlines() if line.startswith("Error")]
            assert sentence.startswith(
                f"Error: the study smoke in {tmp_path} is in use by the snakemake of process {first.pid} on "
            )
            assert "Traceback" not in second.stderr
        for options in (["-n"], ["--summary"], ["--lint"]):
            reading = snakemake(tmp_path, *smoke, *options)
            assert "in use" not in reading.stderr
        assert first.poll() is None
        assert list(tmp_path.glob(".snakemake/locks/*.lock"))


def test_a_killed_snakemake_leaves_nothing_that_stops_the_next_one(tmp_path):
    with running(tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)  # its jobs go on
        first.wait()
        assert list(tmp_path.glob(".snakemake/locks/*.lock"))
        target = "results/smoke/data/benchmarks.jsonl"
        again = snakemake(tmp_path, target, "--configfile", str(ROOT / "config/smoke.yaml"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / target).exists()


@pytest.fixture()
def two_trainings(configured):
    """Return the path of a study of two trainings without a warm-up, whose steps take long enough to be stopped."""
    return configured(grid__mitigation=["base"], sft__num_train_epochs=0, training__max_steps=25)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path, two_trainings):
    with running(tmp_path, two_trainings) as first:
        while not (stopped := list(tmp_path.glob("results/smoke/train/**/checkpoints/metrics.jsonl"))):
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.05)
        status = run("nested-reft", "status", cwd=tmp_path).stdout
        assert re.match(r"smoke: runs for .*, 1 running; ", status), status
        os.killpg(first.pid, signal.SIGINT)
        assert first.wait() == 130
    printed = (tmp_path / "first.log").read_text()
    assert printed.rstrip().endswith("The study 'smoke' was interrupted; run the same command to go on.")
    assert "failed" not in printed and "Traceback" not in printed
    status = run("nested-reft", "status", cwd=tmp_path).stdout
    assert re.match(r"smoke: does not run, .*, 1 stopped; ", status), status
    training = stopped[0].parents[1]
    again = snakemake(tmp_path, "--configfile", two_trainings, "--", str(training.relative_to(tmp_path) / "run.json"))
    assert again.returncode == 0, again.stdout + again.stderr
    status = run("nested-reft", "status", cwd=tmp_path).stdout
    assert re.match(r"smoke: does not run, .*", status) and "stopped" not in status, status
    assert read_json(training / "run.json")["attempts"] == 2 and (training / "metrics.json").exists()


def test_a_failed_study_ends_with_each_failure_and_what_to_do(tmp_path):
    (tmp_path / "results/smoke/data/benchmarks.jsonl.part").mkdir(parents=True)  # where the job writes a file
    options = ["--configfile", str(ROOT / "config/smoke.yaml"), "--until", "prepare_benchmarks"]
    failed = snakemake(tmp_path, *options)
    assert failed.returncode == 1
    lines = failed.stderr.rstrip().splitlines()
    assert lines[-4].startswith("The study 'smoke' is not complete: 1 of its jobs failed.")
    assert lines[-3].startswith("  prepare benchmarks: IsADirectoryError: ")
    assert lines[-2] == "    logs/smoke/prepare_benchmarks.log"
    assert lines[-1] == "Remove the cause and run the same command to go on; finished jobs are kept."
    assert len([line for line in lines if line.startswith("[1/1] failed: prepare benchmarks: ")]) == 1
    assert len(lines) < 10


@pytest.fixture()
def study_of_clone(tmp_path):
    """Return a clone of the repository, and a function that runs the smoke study of three mitigations in it."""
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", str(ROOT), str(clone))
    smoke = ("--configfile", "config/smoke.yaml", "--config", SMOKE_GRID)

    def study(*options: str) -> str:
        command = ["env", f"PYTHONPATH={clone}", str(Path(sys.executable).with_name("snakemake"))]
        finished = run(*command, "--cores", "2", *smoke, *options, cwd=clone)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    return clone, study


def without_timings(file: Path) -> str:
    """Return a table of a report as CSV text, without its columns of timings."""
    table = pd.read_csv(file, dtype=str)
    return table.drop(columns=[c for c in table if c.endswith("_s") or c == "seconds"]).to_csv(index=False)


@pytest.mark.slow
def test_a_study_in_a_clone_leaves_git_clean_and_follows_the_code(smoke_study, study_of_clone):
    """The clone gets the files of a finished study. Its code lies elsewhere, so that the analysis runs again."""
    clone, study = study_of_clone
    shutil.copytree(smoke_study, clone, symlinks=True, dirs_exist_ok=True)
    (clone / "terminal.txt").unlink()  # `smoke_study` wrote it, and not the study
    assert jobs(study("-n")) == {"analyse": 1}
    study()
    study("--report", "report.html")
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    assert "Nothing to be done" in study()
    # The smoke study sets this key, so that only the table of differences from the defaults can change.
    sections = clone / "nested_reft/config/sections.py"
    changed = sections.read_text().replace("max_steps: int = key(500", "max_steps: int = key(400")
    assert changed != sections.read_text()
    sections.write_text(changed)
    assert jobs(study("-n")) == {"analyse": 1}
    # Code that decides no table reruns nothing more.
    (clone / "nested_reft/trainer.py").open("a").write("\n# a comment\n")
    assert jobs(study("-n")) == {"analyse": 1}


@pytest.mark.slow
@pytest.mark.nightly  # the test above takes the results of a finished study, and that of kills repeats a part of one
def test_a_whole_study_in_a_clone_gives_the_same_bytes(smoke_study, study_of_clone):
    clone, study = study_of_clone
    study()
    for name in ("results.csv", "steps.csv"):
        one, two = (without_timings(folder / "reports/smoke" / name) for folder in (smoke_study, clone))
        assert one == two and "retrace" in two


def test_a_finished_study_has_nothing_to_be_done_also_with_keys_in_another_order(smoke_study, configured):
    again = snakemake(smoke_study, "--configfile", configured())
    assert "Nothing to be done" in again.stdout + again.stderr


def test_every_trained_model_has_a_card_with_its_accuracies(smoke_study):
    """The card is written again after the evaluation; the test above shows that this reruns nothing."""
    models = [*smoke_study.glob("results/smoke/sft/**/model"), *smoke_study.glob("results/smoke/train/**/model")]
    assert len(models) == 5
    for model in models:
        card = (model / "README.md").read_text()
        assert "base_model: embedded/tiny-28" in card and "license: apache-2.0" in card
        assert "| one-step | 6 |" in card and "not been evaluated" not in card


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"evaluation__max_new_tokens": 9}, {"evaluate": 6, "analyse": 1}),
        ({"training__epsilon": 0.3}, {"train": 4, "evaluate": 4, "analyse": 1}),
        ({"grid__border": [1, 2]}, {"train": 3, "evaluate": 3, "analyse": 1}),  # both share the baseline
        (
            {"decontamination__ngram": 8},
            {"prepare_dataset": 1, "measure_speed": 1, "sft": 1, "train": 4, "evaluate": 5, "analyse": 1},
        ),
        ({"grid__seed": [0, 1]}, {"sft": 1, "train": 4, "evaluate": 5, "analyse": 1}),
        ({"grid__skip_ratio": [0.15, 0.2]}, {"measure_speed": 1, "train": 3, "evaluate": 3, "analyse": 1}),
        ({"analysis__speed_rounds": 4}, {"measure_speed": 1, "analyse": 1}),
        ({"analysis__speed_rounds": 0}, {"analyse": 1}),
        ({"tracking__uri": "sqlite:///elsewhere.db"}, {"tracking_store": 1}),
        ({"jobs__threads": 2}, {}),
    ],
)
def test_a_changed_key_reruns_what_depends_on_it_and_nothing_else(smoke_study, configured, change, expected):
    planned = snakemake(smoke_study, "-n", "--configfile", configured(**change))
    assert jobs(planned.stdout + planned.stderr) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sft__num_train_epochs": 0}, {"train": 4, "evaluate": 5}),
        (
            {"models__tiny-28": {"path": "embedded/tiny-28", "sft_checkpoint": "embedded/tiny-28"}},
            {"train": 4, "evaluate": 6},
        ),
    ],
)
def test_a_study_without_a_warm_up_of_its_own_has_no_job_for_it(configured, tmp_path, change, expected):
    planned = snakemake(tmp_path, "-n", "--configfile", configured(**change))
    counted = jobs(planned.stdout + planned.stderr)
    assert {name: counted[name] for name in ("sft", "train", "evaluate")} == {"sft": 0} | expected


def test_a_model_is_prepared_again_when_its_gguf_file_changes(configured, tmp_path):
    note = tmp_path / "results/smoke/pretrained/model~tiny-28/model.json"
    note.parent.mkdir(parents=True)
    note.write_text("{}")
    (tmp_path / "x.gguf").write_text("GGUF")
    os.utime(note, (1e9, 1e9))  # older than the file
    study = configured(**{"models__tiny-28": {"path": str(tmp_path / "x.gguf")}})
    planned = snakemake(tmp_path, str(note.relative_to(tmp_path)), "-n", "--configfile", study)
    assert f"Updated input files: {tmp_path / 'x.gguf'}" in planned.stdout, planned.stdout + planned.stderr


def test_a_prompt_template_is_compared_by_its_text(smoke_study, configured, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(TEMPLATES["qwen-math"] + "So ")
    study = configured(prompt__template=str(mine))
    planned = snakemake(smoke_study, "-n", "--configfile", study)
    expected = {"measure_speed": 1, "sft": 1, "train": 4, "evaluate": 6, "analyse": 1}
    assert jobs(planned.stdout + planned.stderr) == expected


def test_a_reward_that_cannot_be_imported_stops_a_study_before_any_job(tmp_path, configured):
    study = configured(training__reward_funcs=["own.py:short"])
    finished = snakemake(tmp_path, "--configfile", study)
    assert (
        finished.returncode == 2 and "training.reward_funcs has own.py:short, whose import failed" in finished.stderr
    )
    assert "Traceback" not in finished.stderr and not (tmp_path / "results").exists()


def test_runs_differ_only_in_what_their_instance_says(smoke_study):
    records = [read_json(path) for path in sorted(smoke_study.glob(f"{TRAINS}/**/run.json"))]
    assert len(records) == 4
    for record in records:
        record["num_skipped"] = None
        record["settings"]["run"] = None
        same = ("settings", "inputs", "data_order_sha256")
        assert all(record[name] == records[0][name] for name in same)
        assert record["run"]["seed"] == 0
        assert "/sft/" in record["inputs"]["model"]["path"]
    assert len({str(record["run"]) for record in records}) == 4
    # The baseline has border 0, and skips none of its valid layers.
    assert {(record["run"]["border"], len(record["valid_layers"])) for record in records} == {(0, 27), (1, 26)}


def test_instances_of_a_ratio_sample_with_the_same_skipped_layers(smoke_study):
    skipped = {path.read_text() for path in smoke_study.glob(f"{TRAINS}/skip_ratio~0.15/**/skipped_layers.jsonl")}
    assert len(skipped) == 1


def test_four_runs_trained_at_once_into_a_fresh_store_and_nothing_was_lost(smoke_study):
    client, experiment = open_store(f"sqlite:///{smoke_study}/results/mlflow.db", "smoke")
    tracked = client.search_runs([experiment])
    stages = {"measure_speed": 1, "sft": 1, "train": 4, "evaluate": 6, "study": 1}
    assert Counter(run.data.tags["stage"] for run in tracked) == stages
    assert all(run.info.status == "FINISHED" for run in tracked)
    by_uid = {run.data.tags["uid"]: run for run in tracked}
    files = list(smoke_study.glob("results/smoke/**/run.json"))
    assert len(files) == 12
    for path in files:
        record = read_json(path)
        mirrored = by_uid[record["uid"]]
        for name, value in result_names(read_versioned_json(path.with_name("metrics.json"))).items():
            assert mirrored.data.metrics[name] == pytest.approx(value)
        if record["stage"] == "train":
            rows = read_rows(path.with_name("metrics.jsonl"))
            kept = client.get_metric_history(mirrored.info.run_id, "sampling/kl")
            assert [(m.step, m.value) for m in kept] == [(row["step"], row["sampling/kl"]) for row in rows]
            assert mirrored.data.tags["skip_ratio"] == str(record["run"]["skip_ratio"])
    (parent,) = [run for run in tracked if run.data.tags["stage"] == "study"]
    artifacts = smoke_study / f"results/mlartifacts/smoke/{parent.info.run_id}/artifacts"
    assert {folder.name for folder in artifacts.iterdir()} == {"figures", "sources", "tables"}
    children = [run for run in tracked if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 12
    verdicts = Counter(run.data.tags["verdict"] for run in children if run.data.tags["stage"] == "train")
    assert verdicts["baseline"] == 1 and sum(verdicts.values()) == 4
    assert {run.data.tags["stage"] for run in tracked if "verdict" in run.data.tags} == {"train"}


def test_reports_are_complete_and_tidy(smoke_study):
    reports = smoke_study / "reports/smoke"
    table = pd.read_csv(reports / "results.csv")
    study = parse_settings(Study, yaml.safe_load((ROOT / "config/smoke.yaml").read_text()))
    assert len(expand_grid(study)) == 3  # the finished study has one mitigation more
    assert len(table) == (1 + 1 + 4) * 2  # evaluated models x benchmarks
    keys = ["product", *RUN, "benchmark"]
    assert not table.duplicated(keys).any()
    assert table["accuracy"].between(0, 1).all() and (table["ci_low"] <= table["accuracy"]).all()
    assert (reports / "table1.md").read_text().split("\n")[2].split("|")[1].strip() == "tiny-28"
    figures = ["figure_mixed", *layout.FIGURES]
    assert {path.stem for path in reports.glob("*.csv")} == {
        *layout.TABLES,
        *(name[:-4] for name in (*layout.SOURCES, *layout.DETAILS) if name.endswith(".csv")),
    }
    assert {path.stem for path in reports.glob("*.png")} == set(figures)
    assert {path.stem for path in reports.glob("caption_*.rst")} == {f"caption_{name}" for name in layout.CAPTIONS}
    for name in figures:
        assert (reports / f"{name}.png").stat().st_size > 10_000
        assert "<svg" in (reports / f"{name}.svg").read_text()


@pytest.fixture()
def study_of_a_mirror(real_mirror, tmp_path):
    """Write a small study on two real training sets and the five benchmarks; return its path."""
    study, paper = (yaml.safe_load((ROOT / "config" / name).read_text()) for name in ("smoke.yaml", "paper.yaml"))
    study["mirror"] = str(real_mirror)
    study["datasets"] = {
        name: paper["datasets"][name] | {"size": 16} for name in ("SVAMP", "GSM8K")
    }  # both are checked
    study["benchmarks"] = {name: source | {"size": 2} for name, source in paper["benchmarks"].items()}
    study["grid"] |= {"dataset": ["SVAMP"], "mitigation": ["retrace"]}
    study["training"]["max_steps"] = 3
    study["analysis"]["speed_rounds"] = 0
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "real.yaml"


@needs_data
@pytest.mark.slow
def test_real_data_of_a_mirror_are_prepared_and_evaluated_on(study_of_a_mirror, tmp_path):
    targets = ["data/dataset~SVAMP/train.jsonl", "evaluate/pretrained/model~tiny-28/metrics.json"]
    made = [f"results/smoke/{target}" for target in targets]
    finished = snakemake(tmp_path, "--configfile", str(study_of_a_mirror), "--", *made)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    check_training_set_of_the_mirror(tmp_path)
    benchmarks = yaml.safe_load(study_of_a_mirror.read_text())["benchmarks"]
    metrics = read_json(tmp_path / made[1])
    assert {name: metrics[f"eval/{name}/n"] for name in benchmarks} == dict.fromkeys(benchmarks, 2)


def check_training_set_of_the_mirror(directory: Path) -> None:
    """Check that the training set is 16 rows of SVAMP, none of which a benchmark contains."""
    folder = directory / "results/smoke/data/dataset~SVAMP"
    assert read_json(folder / "train.manifest.json")["rows"]["kept"] == 16
    assert (folder / "train.dropped.jsonl").read_text() == ""


@needs_data
@pytest.mark.slow
@pytest.mark.nightly  # the test above stops before the trainings
def test_real_data_of_a_mirror_go_through_the_whole_study(study_of_a_mirror, tmp_path):
    finished = snakemake(tmp_path, "--configfile", str(study_of_a_mirror))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    suite = yaml.safe_load(study_of_a_mirror.read_text())["benchmarks"]
    table = pd.read_csv(tmp_path / "reports/smoke/results.csv")
    products = [("pretrained", None, None), ("sft", "SVAMP", None)]
    products += [("train", "SVAMP", ratio) for ratio in (0.0, 0.15)]
    found = table[["product", "dataset", "skip_ratio", "benchmark"]].astype(object)
    expected = {(*product, benchmark) for product in products for benchmark in suite}
    assert set(found.where(found.notna(), None).itertuples(index=False, name=None)) == expected
    assert len(table) == len(expected)
    assert (table["n"] == 2).all()
    for path in tmp_path.glob("results/smoke/train/**/metrics.jsonl"):
        assert len(read_rows(path)) == 3
    check_training_set_of_the_mirror(tmp_path)


def test_every_job_left_a_log_and_a_benchmark(smoke_study):
    logs = {path.relative_to(smoke_study / "logs").with_suffix("") for path in smoke_study.glob("logs/**/*.log")}
    tables = {
        path.relative_to(smoke_study / "benchmarks").with_suffix("")
        for path in smoke_study.glob("benchmarks/**/*.tsv")
    }
    assert logs == tables
    assert len(logs) == 4 + 1 + 1 + 4 + 6 + 1


def test_logs_are_rows_that_say_how_far_a_job_is(smoke_study):
    row = re.compile(r"\d{4}[-/]\d\d[-/]\d\d \d\d:\d\d:\d\d (INFO|WARNING) \S.*")
    for path in (log for stage in STAGES for log in smoke_study.glob(f"logs/smoke/{stage}/**/*.log")):
        for line in path.read_bytes().decode().split("\n")[:-1]:
            assert row.fullmatch(line), f"{path}: {line!r}"
    (sft,) = smoke_study.glob("logs/smoke/sft/**/*.log")
    assert "INFO step 1/2: loss " in sft.read_text() and " left\n" in sft.read_text()
    for path in smoke_study.glob("logs/smoke/train/**/*.log"):
        assert re.search(r"INFO step 2/2: reward [\d.]+, KL \S+, acceptance [\d.]+, [\d.]+ s/step\n", path.read_text())
    for path in smoke_study.glob("logs/smoke/evaluate/**/*.log"):
        assert "INFO completion 12/12\n" in path.read_text()


def test_the_report_is_one_self_contained_file(smoke_study, configured):
    built = snakemake(smoke_study, "--configfile", configured(), "--report", "report.html")
    assert built.returncode == 0, built.stdout + built.stderr
    html = (smoke_study / "report.html").read_text()
    assert len(html) > 500_000
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', html)
    for name in ("figure_mixed.svg", "heat_map.svg", "reward.svg", "table1.html", "table2.html", "provenance.html"):
        assert name in html
    # the first page and the captions state the results
    for words in ("What is inconclusive", "Only one seed was run", "3 accuracy deltas: "):
        assert words in re.sub(r"\s+", " ", html)
