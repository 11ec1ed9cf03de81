"""The page of a report: complete, self-contained, and with the answer first."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nested_reft.config import layout
from nested_reft.report import page
from nested_reft.report.build import write_table
from nested_reft.report.contents import contents
from nested_reft.report.figures import figures_of_study
from tests import synthetic


def plain(html: str) -> str:
    """Return the text of a piece of HTML."""
    return re.sub(r" ([,.:)])", r"\1", " ".join(re.sub(r"<[^>]+>", " ", html).split()))


def first_screen(html: str) -> str:
    """Return the text of the part of a page that is shown first."""
    return plain(html.split('<section class="first"')[1].split("</section>")[0])


def left_out(html: str) -> list[str]:
    """Return the titles of the figures that the page leaves out, each with a sentence that gives the reason."""
    return re.findall(r"<h3>([^<]+)</h3>\s*<p>This figure is left out\. The sources of this report hold no \w+", html)


def check_page(html: str, datasets: list[str]) -> None:
    """Check that a page holds everything but the figures that it says are left out, and asks for nothing."""
    assert len(html) < 10_000_000
    assert not re.findall(r'(?:src|href)="(?!#|data:)', html)
    assert not re.findall(r"@import|url\((?!#|%23)", re.sub(r'src="data:[^"]*"', "", html))
    names = [name for _, name, title in contents(datasets) if title not in left_out(html)]
    shown = re.findall(r'<(?:article|figure) id="([^"]+)"', html)
    assert sorted(shown) == sorted(names)
    assert shown[1:] == [name for name in names if name != shown[0]]  # in the order of the contents
    assert html.count('<table id="table-') + html.count("This table has no rows.") == len(layout.TABLES) + 1
    assert html.count("<img ") == len(names) - len(layout.TABLES)
    (narrow,) = re.findall(r'<source media="\(max-width: 30rem\)" srcset="([^"]*)">', html)
    assert narrow.startswith("data:image/svg+xml,") and not re.search(r"[\s,]", narrow.partition(",")[2])
    linked = set(re.findall(r'href="#([^"]+)"', html))
    assert linked <= set(re.findall(r'id="([^"]+)"', html))


def test_the_page_of_a_study_is_complete(made_up):
    html = (made_up / "report/report.html").read_text()
    check_page(html, ["one-step", "multi-step", "algebra"])
    assert left_out(html) == []
    assert "<title>synthetic, 1 January 2026: Nested-ReFT report</title>" in html
    assert "What is missing" not in html


def test_the_first_screen_answers_in_five_lines(made_up):
    screen = first_screen((made_up / "report/report.html").read_text())
    accuracy = pd.read_csv(made_up / "report/deltas.csv").query("metric == 'accuracy'")
    low, high = 100 * accuracy["baseline"].min(), 100 * accuracy["baseline"].max()
    skipped = (
        f"{100 * accuracy['instance'].min():.1f}% to {100 * accuracy['instance'].max():.1f}% with skipped layers."
    )
    assert re.search(r"Skipping layers costs accuracy: \S+ points at 15% skipped\.", screen)
    assert re.search(r"changes by -\S+ points per 10% of the layers skipped, 95% interval \[", screen)
    assert f"{low:.1f}% to {high:.1f}% in the 3 baselines, {skipped}" in screen
    worst = 100 * accuracy["absolute_delta"].min()
    assert re.search(rf"Largest: 15% practical on small-28, \S+ {worst:+.1f} points \[", screen)
    assert "Single comparisons: 3 of 27 worse, 24 inconclusive." in screen
    assert "The intervals cover 2 seeds and problems within benchmarks." in screen
    assert "small-28 was pretrained with layer dropout: other models may lose more accuracy." in screen
    assert re.search(r"A true change has to be \S+ to \S+ points, depending on the comparison, to be found", screen)
    efficiency = pd.read_csv(made_up / "report/efficiency.csv")
    low, middle, high = (f"{x:.2f}" for x in efficiency.groupby("skip_ratio")["sampling_speed_up"].median())
    times = f"Sampling: {low}, {middle} and {high} times as fast as without skipping at 5%, 10% and 15% skipped."
    assert times in screen and "Measured on a machine that did nothing else, over 8 rounds." in screen
    assert re.search(
        r"Whole steps: \S+%, \S+% and \S+% tokens per second at 5%, 10% and 15% skipped\. Medians;", screen
    )
    assert (
        "small-28 trained on one-step, multi-step, algebra; accuracy is the mean over the benchmarks one-step,"
        in screen
    )
    assert re.search(r"Off-policy: KL \S+ nats per token, acceptance rate 0\.\d\d at 15% skipped", screen)
    assert "Mitigation: how a token is weighted" in screen and "Points: percentage points of accuracy." in screen


def test_the_pages_of_the_committed_reports_are_complete(rebuilt):
    committed, out = rebuilt
    html = (out / "report.html").read_text()
    datasets = [path.stem.removeprefix("figure_") for path in out.glob("figure_*.svg")]
    check_page(html, ["mixed"] if datasets == ["mixed"] else ["one-step", "multi-step", "algebra"])
    # The report of the full study was made before these measurements were collected.
    older = {"layers", "reward_cost", "token_weights"} if len(datasets) > 1 else set[str]()
    assert left_out(html) == [title for _, name, title in contents(datasets) if name in older]
    screen = first_screen(html)
    assert "Noise: the forward and backward passes, which skipping does not change, differ by" in screen
    expected = {
        "embedded": "The speed grows by 1.15% [1.08, 1.35] for each 1% of the layers skipped.",
        "embedded-full": "grows by 1.16% [0.94, 1.29] (tiny-28), 1.13% [0.99, 1.27] (wide-20) for each 1%",
    }
    assert expected[committed.name] in screen
    expected = {
        "embedded": "In these runs of one seed, skipping layers costs accuracy: 2.9 points at 15% skipped.",
        "embedded-full": "changes by -0.7 points per 10% of the layers skipped, 95% interval [-1.2, -0.2]; at 15%",
    }
    assert expected[committed.name] in screen


def test_every_figure_has_a_place_in_the_contents():
    config = synthetic.study().model_dump()
    placed = {name for _, name, _ in contents(config["grid"]["dataset"])}
    assert placed == {*figures_of_study(config), *layout.TABLES}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("absolute_delta", 0.0166, "+0.017"),
        ("best_paper_form", 0.016, "0.016"),
        ("relative_delta", -0.19249, "-19.2%"),
        ("skip_ratio", 0.15, "15%"),
        ("p_holm", 0.04249, "0.042"),
        ("best_p", 0.00004, "< 0.001"),
        ("train_runtime_s", 45.1234, "45.1"),
        ("token_speed_tok_s", 12345.6, "12346"),
        ("sampling_speed_up", 1.1234, "1.12"),
        ("seeds", 3, "3"),
        ("verdict", "worse", "worse"),
        ("p", float("nan"), ""),
    ],
)
def test_numbers_are_rounded_for_reading(column, value, expected):
    assert page.rounded(column, value) == expected


def test_accuracies_are_in_percent_and_their_deltas_and_intervals_in_points():
    row = {"best_delta": 0.0167, "best_paper_form": 0.016, "best_ci_low": -0.002, "best_ci_high": 0.035}
    view = page.table_view("table2", pd.DataFrame([row]))
    assert view["headings"] == [
        ("best delta, points", True),
        ("best paper form", True),
        ("best interval, points", True),
    ]
    assert [cell.text for cell in view["rows"][0]] == ["+1.7", "0.016", "[-0.2, +3.5]"]
    stages = pd.DataFrame([{"accuracy": 0.91, "interval": 0.02, "ci_low": 0.89, "ci_high": 0.93}])
    view = page.table_view("stages", stages)
    assert view["headings"] == [("accuracy, %", True), ("interval, %", True)] and view["has_percent"]
    assert [cell.text for cell in view["rows"][0]] == ["91.0", "[89.0, 93.0]"]
    assert "0.91" in view["csv"]  # files hold shares


def test_a_table_has_its_intervals_in_one_column_and_sorts_by_numbers():
    table = pd.DataFrame({"absolute_delta": [0.01, None], "ci_low": [-0.02, None], "ci_high": [0.04, None]})
    view = page.table_view("table2", table)
    assert view["headings"] == [("absolute delta", True), ("interval", True)]
    (delta, interval), (no_delta, _) = view["rows"]
    assert interval.text == "[-0.020, +0.040]" and float(interval.order) == -0.02
    assert (delta.text, float(delta.order)) == ("+0.010", 0.01) and no_delta.order == ""
    assert view["csv"].startswith("data:text/csv") and "ci_high" in view["csv"]


def test_accuracies_are_not_sorted_among_speeds():
    table = pd.DataFrame({"metric": ["accuracy", "train_runtime_s", "accuracy"], "absolute_delta": [0.1, 20.0, -0.1]})
    for columns in page.LEFT_OUT["deltas"]:
        table[columns] = 1
    accuracy, speeds = page.table_views("deltas", table)
    assert [row[0].text for row in accuracy["rows"]] == ["accuracy", "accuracy"]
    assert [row[0].text for row in speeds["rows"]] == ["run time, s"]
    assert accuracy["name"] != speeds["name"]


def test_a_border_is_shown_if_a_study_has_several():
    table = pd.DataFrame({"border": [1, 1], "p": [0.5, 0.25]})
    assert [heading for heading, _ in page.table_view("mcnemar", table)["headings"]] == ["p"]
    table["border"] = [1, 2]
    assert [heading for heading, _ in page.table_view("mcnemar", table)["headings"]] == ["border", "p"]


def test_the_first_use_of_a_word_of_the_glossary_is_linked():
    linked = page.link_terms('<p title="cell">Cells of <span class="pre">base</span>: a cell, a base</p>')
    assert linked == (
        '<p title="cell"><a class="term" href="#term-cell">Cells</a> of <span class="pre">base</span>: a cell, '
        'a <a class="term" href="#term-base">base</a></p>'
    )


def test_markup_in_a_message_is_shown_and_not_executed():
    assert "&lt;script&gt;" in page.html("a <script>alert(1)</script>")
    assert "<script>" not in page.table_document("x", "<script>", pd.DataFrame({"<script>": ["<script>"]})).split(
        "</table>"
    )[0].replace("</script>", "")


def break_study(root: Path) -> tuple[str, str]:
    """Write a study of 20 runs into a folder, of which one is missing and one has failed; return the paths of both."""
    study = synthetic.study(models=1, datasets=1)
    results = root / layout.RESULTS.format(study=study.study)
    synthetic.write(study, results)
    cell = {"model": "small-28", "dataset": "one-step", "border": 1, "seed": 1}
    missing = layout.TRAIN.format(skip_ratio=0.1, mitigation="retrace", **cell)
    failed = layout.TRAIN.format(skip_ratio=0.05, mitigation="base", **cell)
    for path in (missing, failed):
        shutil.rmtree(results / path)
        shutil.rmtree(results / "evaluate" / path)
    log = root / layout.LOGS.format(study=study.study) / f"{failed}.log"
    log.parent.mkdir(parents=True)
    log.write_text("INFO train starts\nError: the disk is full\n")
    return missing, failed


def test_a_long_table_is_shown_in_part_and_says_so(tmp_path):
    table = pd.DataFrame({"run": range(1500)})
    write_table("mcnemar", "Title", table, tmp_path)
    said = "These are the first 1,000 of 1,500 rows; mcnemar.csv has all."
    for suffix, rows in (("md", 1000), ("tex", 1000), ("html", 1000), ("csv", 1500)):
        content = (tmp_path / f"mcnemar.{suffix}").read_text()
        assert (said in content) == (rows == 1000), suffix
        assert ("1234" in content) == (rows == 1500), suffix
