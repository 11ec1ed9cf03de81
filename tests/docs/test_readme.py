"""What the README and the pages of results show is what the repository holds."""

import json
import re
from typing import Any

import pandas as pd
import pytest
import typer

from nested_reft.cli import app
from nested_reft.report.answer import resolvable
from tests.conftest import ROOT
from tests.docs import test_docs

README = (ROOT / "README.md").read_text()
MINUS = "\N{MINUS SIGN}"
BENCHMARKS = ROOT / "docs/reports/benchmarks"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_paths_of_the_readme_exist():
    linked = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    tree = re.search(r"## How the code is laid out\n\n```text\n(.*?)```", README, re.S)[1]
    in_tree = []
    for line in tree.splitlines():
        folder = ""
        for path in re.split(r", ", re.split(r"  +", line)[0]):
            folder = "nested_reft/" if path.startswith("nested_reft/") else folder
            in_tree.append(path if path.startswith("nested_reft/") else folder + path)
    assert len(linked) > 20 and len(in_tree) > 15
    for path in linked + in_tree:
        assert (ROOT / path).exists(), path


OF_A_USER = {"config/mine.yaml"}
PAGES = [page.read_text() for page in test_docs.PAGES]


def test_files_that_the_pages_name_exist():
    folders = "nested_reft|tests|examples|config|docs|workflow|profiles"
    named = {path for text in PAGES for path in re.findall(rf"`((?:{folders})/[\w./-]+)", text)} - OF_A_USER
    assert len(named) > 20
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_program_of_the_readme_passes_the_arguments_of_the_example():
    (program,) = re.findall(r"```python\n(.*?)```", README, re.S)
    example = (ROOT / "examples/train_own_rows.py").read_text()
    for line in ("from nested_reft import NestedGRPOTrainer", 'mitigation="retrace",', 'sampler="engine",'):
        assert line in program and line in example
    for argument in ("skip_ratio=", "reward_funcs=", "train_dataset=", "args=GRPOConfig("):
        assert argument in program and argument in example


def test_make_targets_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in PAGES for target in re.findall(r"(?:`|^)make ([\w-]+)", text, re.M)}
    assert {"study", "report", "ui", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_sub_commands_and_options_of_the_pages_exist():
    shown = {line for text in PAGES for line in re.findall(r"(?:`|^|\$ )nested-reft ([^`\n]+)", text, re.M)}
    assert len(shown) > 10
    for line in shown:
        command = typer.main.get_command(app)
        words = line.split()
        while words and hasattr(command, "commands") and not words[0].startswith("--"):
            command = command.commands[words.pop(0)]
        if command.context_settings.get("ignore_unknown_options"):
            continue  # `run` passes options on to Snakemake
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def speed_up(file: str, *keys: str) -> dict[str, float]:
    """Return a measured speed-up with its interval."""
    value: Any = json.loads((BENCHMARKS / file).read_text())
    for key in keys:
        value = value[key]
    return value


ROLLOUTS = {
    name: speed_up(f"rollout-tiny-28-{name}.json", "generate", "speed_up", "engine-compiled")
    for name in ("4x8-run-1", "4x8-run-2", "4x8-run-3", "4x8-60-rounds", "4x8-one-thread", "16x8")
}
MEASURED = {
    **ROLLOUTS,
    "4 skipped": speed_up("rollout-tiny-28-4x8-60-rounds.json", "skip", "decode_step", "speed_up", "4"),
    "4 skipped, 16x8": speed_up("rollout-tiny-28-16x8.json", "skip", "decode_step", "speed_up", "4"),
    "1 skipped": speed_up("rollout-tiny-28-4x8-60-rounds.json", "skip", "decode_step", "speed_up", "1"),
    "new layers": speed_up("rollout-tiny-28-4x8-60-rounds.json", "new_skip_set", "speed_up", "new"),
    "step": speed_up("train-tiny-28.json", "steps", "speed_up", "engine-compiled, k = 0"),
    "step, 4 skipped": speed_up("train-tiny-28.json", "steps", "speed_up", "engine-compiled, k = 4"),
    "evaluation": speed_up("eval-tiny-28.json", "evaluation", "speed_up", "engine-compiled"),
}


@pytest.mark.parametrize("name", MEASURED)
def test_speeds_of_the_results_page_are_those_of_the_measurements(name):
    page = (ROOT / "docs/results/benchmarks.md").read_text()
    values = [MEASURED[name][key] for key in ("median", "ci_low", "ci_high")]
    shown = ["{} [{}, {}]".format(*(f"{value:.{digits}f}" for value in values)) for digits in (2, 3)]
    assert any(f"| {text} " in page for text in shown), shown


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_headline_numbers_are_those_of_the_reports(page):
    text = (ROOT / page).read_text()
    medians = [one["median"] for one in ROLLOUTS.values()]
    assert f"{min(medians) - 0.05:.1f} to {max(medians):.1f} times" in text
    skipped = [MEASURED["4 skipped, 16x8"]["median"], MEASURED["4 skipped"]["median"]]
    assert f"{skipped[0]:.2f} to {skipped[1]:.2f} times" in text
    deltas = pd.read_csv(ROOT / "docs/reports/embedded-full/deltas.csv")
    accuracy = deltas[deltas["metric"] == "accuracy"]
    assert (accuracy["verdict"] == "inconclusive").all()
    assert f"Each of the {len(accuracy)} single differences from the baseline is inconclusive by itself" in text
    trend = pd.read_csv(ROOT / "docs/reports/embedded-full/trend.csv").iloc[0]
    assert trend["verdict"] == "worse"
    slope, low, high = (f"{MINUS}{-100 * trend[name]:.1f}" for name in ("slope", "ci_low", "ci_high"))
    assert f"{slope} percentage points per 10 % of the layers skipped (95 % interval {low} to {high})" in text
    results = pd.read_csv(ROOT / "docs/reports/embedded-full/results.csv")
    trained = results[results["product"] == "train"]
    runs = trained.drop_duplicates(["model", "dataset", "skip_ratio", "mitigation", "seed"])
    assert re.search(rf"\b{len(runs)} trainings\b", text)


def test_numbers_of_the_full_shape_page_are_those_of_the_report():
    page = (ROOT / "docs/results/embedded-full.md").read_text()
    deltas = pd.read_csv(ROOT / "docs/reports/embedded-full/deltas.csv")
    accuracy = deltas[deltas["metric"] == "accuracy"]
    low, high = accuracy["absolute_delta"].min(), accuracy["absolute_delta"].max()
    assert f"{MINUS}{-100 * low:.1f} and +{100 * high:.1f} percentage points" in page
    assert f"correction is {accuracy['p_holm'].min():.2f}." in page
    assert f"{(accuracy['absolute_delta'] < 0).sum()} of the {len(accuracy)} estimates are below zero" in page
    reach = 100 * ((accuracy["ci_high"] - accuracy["ci_low"]) / 2).median()
    assert f"extend {reach:.1f} points to either side" in page
    needed = 100 * resolvable(accuracy, 0.95, 0.8)
    said = f"a true difference has to be {needed.min():.1f} to {needed.max():.1f} percentage points, depending on"
    assert said in page and said in README
    trends = pd.read_csv(ROOT / "docs/reports/embedded-full/trend.csv").set_index("part")
    row = 100 * trends[["slope", "ci_low", "ci_high", "delta", "delta_ci_low", "delta_ci_high"]]
    shown = row.map(lambda points: f"{points:+.1f}".replace("-", MINUS))
    for part, named in (("model tiny-28", "`tiny-28`"), ("model wide-20", "`wide-20`")):
        slope, low, high = shown.loc[part, ["slope", "ci_low", "ci_high"]]
        assert re.search(rf"{named} \({re.escape(slope)}[a-z0-9 %]*, {re.escape(low)} to {re.escape(high)}\)", page)
    slope, low, high, delta, delta_low, delta_high = shown.loc["all runs"]
    p, p_order = trends.loc["all runs", ["p", "p_order"]]
    assert f"{slope} percentage points per 10 %" in page and f"interval {low} to {high}, p = {p:.2g};" in page
    assert f"p = {p_order:.1g}), which makes {delta} points at 15 % ({delta_low} to {delta_high})" in page


def test_the_embedded_page_names_the_worse_deltas_and_the_trend_of_the_report():
    page = (ROOT / "docs/results/embedded.md").read_text()
    deltas = pd.read_csv(ROOT / "docs/reports/embedded/deltas.csv")
    worse = deltas[(deltas["metric"] == "accuracy") & (deltas["verdict"] == "worse")]
    assert set(worse["mitigation"]) == {"retrace"} and len(worse) == 2
    shown = [
        f"{row.skip_ratio:.0%} ({MINUS}{-100 * row.absolute_delta:.1f}".replace("%", " %")
        for row in worse.itertuples()
    ]
    assert f"are `worse`: `retrace` at {shown[0]} percentage points) and at {shown[1]} points)" in page
    trends = pd.read_csv(ROOT / "docs/reports/embedded/trend.csv").set_index("part")
    slope, low, high = (f"{MINUS}{-100 * trends.loc['all runs', name]:.1f}" for name in ("slope", "ci_low", "ci_high"))
    assert f"by {slope} points per 10 % of the layers skipped (95 % interval {low} to {high})" in page
    assert f"p = {trends.loc['all runs', 'p_order']:.2g}." in page
    assert list(trends["verdict"]) == ["worse", "inconclusive", "inconclusive", "worse"]


def test_the_readme_and_the_quickstart_show_the_same_program_and_summary():
    quickstart = (ROOT / "docs/quickstart.md").read_text()
    for language in ("python", "text"):
        block = re.search(rf"```{language}\n(.*?)```", README, re.S)[0]
        assert block in quickstart


def test_the_summary_in_the_readme_is_the_one_that_a_study_prints():
    """The slow test of the tutorial compares the whole text."""
    rules = (ROOT / "workflow/rules/common.smk").read_text()
    (summary,) = re.findall(r"```text\nThe study 'embedded' is complete\.\n(.*?)\n```", README, re.S)
    labels = [re.match(r"  \S.*?  +", line)[0] for line in summary.splitlines()]
    assert len(labels) == 4
    for label in labels:
        assert f'f"{label}' in rules, label


def test_the_project_speaks_of_itself_alone():
    for path in [
        *ROOT.glob("nested_reft/**/*.py"),
        *ROOT.glob("workflow/**/*"),
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
    ]:
        if path.is_file():
            assert "shared/" not in path.read_text(), path
