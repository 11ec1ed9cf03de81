"""The words of a report: its findings answer first, and every caption states the numbers of its own study."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nested_reft.config import layout
from nested_reft.embedded import PRETRAINED_WITH_LAYER_DROPOUT
from nested_reft.mitigation import MITIGATIONS
from nested_reft.report import build
from nested_reft.report.captions import (
    dataset_words,
    layer_dropout_note,
    literal,
    points,
    render,
    report_facts,
    text,
)
from nested_reft.report.collect import collect
from nested_reft.report.glossary import WEIGHTS
from nested_reft.report.sources import Sources, read_sources
from tests import synthetic
from tests.conftest import ROOT

SOURCES = {"results", "steps", *(Path(name).stem for name in layout.DETAILS)}


def words(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())


def texts(sources: Sources, tables: dict[str, pd.DataFrame] | None = None) -> dict[str, str]:
    """Return every text of a report by name, without line breaks. The tables are made if they are not given."""
    facts = report_facts(sources, tables or build.make_tables(sources))
    return {name: words(text) for name, text in render(facts).items()}


def test_findings_lead_with_the_answer_and_list_what_was_found(made_up):
    findings = words((made_up / "report/findings.rst").read_text())
    assert findings.startswith("Answer ------ 1. **Skipping layers costs accuracy: ")
    titles = ("Answer", "What was found", "What is inconclusive", "What was run")
    places = [findings.index(f"{title} ---") for title in titles]
    assert places == sorted(places)
    for dataset in ("one-step", "multi-step", "algebra"):
        assert f"15% practical on small-28, {dataset}: -" in findings
    caption = words((made_up / "report/caption_heat_map.rst").read_text())
    assert "27 accuracy deltas: 3 worse, 24 inconclusive, at the level 0.05" in caption
    assert "Only one seed" not in findings


def test_findings_of_a_single_instance_name_no_range(tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1)
    grid = study.grid.model_copy(update={"skip_ratio": [0.15], "mitigation": ["retrace"]})
    study = study.model_copy(update={"grid": grid})
    synthetic.write(study, tmp_path)
    facts = report_facts(sources := collect(study, tmp_path), build.make_tables(sources))
    findings = words(render(facts)["findings"])
    assert re.search(r"with skipped layers. 2\. \*\*Single comparison: \w+\.", findings), findings
    assert re.search(r"1 accuracy delta of [+-]\d+\.\d points is inconclusive", findings)
    assert "instances reach" not in findings and "of the instances" not in findings
    said = {False: "1.10 times as fast as in the baseline at 15% skipped.**", True: "It measured 1.10 times the speed"}
    facts["speed_up"]["by_ratio"][0]["median"] = 1.1
    for too_noisy, sentence in said.items():
        in_training = {"measured": [], "sampling_is_noise": False, "too_noisy": too_noisy}
        assert sentence in words(render(facts | in_training)["findings"])


def test_findings_of_one_seed_say_what_a_verdict_means_then(tmp_path):
    study = synthetic.study(seeds=1, models=1, datasets=1)
    synthetic.write(study, tmp_path, effect=-1.5)
    sources = collect(study, tmp_path)
    findings = texts(sources)["findings"]
    assert "The verdict better or worse then says that two trained models differ." in findings


def test_too_little_data_is_said_in_words(tmp_path):
    study = synthetic.study(models=1, datasets=1)
    synthetic.write(study, tmp_path, effect=0.0)
    sources = collect(study, tmp_path)
    tables = build.make_tables(sources)
    facts = report_facts(sources, tables)
    findings = words(render(facts)["findings"])
    assert "1. **Too little data to say whether skipping layers costs accuracy.**" in findings
    assert "2. **Single comparisons: all 9 inconclusive.**" in findings
    assert "No accuracy delta is decided at the level 0.05 after Holm" in findings
    assert re.search(r"A true change has to be \d+\.\d to \d+\.\d points, .* with 80% probability\.", findings)
    for number, said in (
        (1, "1 inconclusive delta has an interval that misses 0: "),
        (2, "2 inconclusive deltas have intervals that miss 0: "),
    ):
        assert words(render(facts | {"miss_zero": number})["findings"]).count(said) == 1
    assert "misses 0" not in words(render(facts | {"miss_zero": 0})["findings"])


TREND = {"slope": -0.01, "ci_low": -0.02, "ci_high": 0.002, "largest_skip_ratio": 0.15}
TREND |= {"delta": -0.0142, "delta_ci_low": -0.03, "delta_ci_high": 0.003, "covers": "seeds, problems"}
FACTS = {"num_tested": 9, "num_missing": 0, "num_present": 27, "num_planned": 30, "margin": 0.01, "confidence": 0.95}


@pytest.mark.parametrize(
    ("trend", "facts", "expected"),
    [
        ({}, {"num_tested": 0}, "Nothing can be compared yet"),
        ({"verdict": "worse"}, {}, "Skipping layers costs accuracy: 1.4 points at 15% skipped"),
        ({"verdict": "better", "delta": 0.01}, {}, "Skipping layers raises the accuracy: by 1 point at 15% skipped"),
        ({"verdict": "equivalent"}, {}, "Skipping layers changes the accuracy by less than 1 point at 15% skipped"),
        ({"verdict": "inconclusive"}, {}, "Too little data to say whether skipping layers costs accuracy"),
        (
            {"verdict": "worse", "covers": "problems"},
            {},
            "In these runs of one seed, skipping layers costs accuracy: 1.4 points at 15% skipped",
        ),
        (
            {"verdict": "waiting"},
            {"num_missing": 3},
            "Interim: 27 of 30 runs are finished; the verdicts wait for the others",
        ),
        (
            {"verdict": "missing"},
            {"num_missing": 3, "num_tested": 0},
            "Interim: 27 of 30 runs are finished; nothing can be compared yet",
        ),
    ],
)
def test_every_kind_of_result_has_a_verdict_in_words(trend, facts, expected):
    assert text("_verdict", FACTS | {"trends": [TREND | trend]} | facts).strip() == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "there is nothing to judge"),
        ({"worse": 2, "inconclusive": 7}, "2 of 9 worse, 7 inconclusive"),
        ({"better": 1, "equivalent": 3, "inconclusive": 0}, "1 of 4 better, 3 equivalent"),
        ({"inconclusive": 54}, "all 54 inconclusive"),
        ({"equivalent": 2}, "both equivalent"),
        ({"worse": 1}, "worse"),
    ],
)
def test_the_verdicts_of_single_comparisons_are_counted(counts, expected):
    assert text("_certainty", {"counts": counts, "num_tested": sum(counts.values())}).strip() == expected


def test_a_trend_says_how_much_is_lost_at_most():
    assert words(text("_trend", FACTS | {"trends": [TREND]})) == (
        "Over all runs the accuracy changes by -1.0 points per 10% of the layers skipped, 95% interval [-2.0, +0.2]; "
        "at 15% skipped by -1.4 [-3.0, +0.3], so a loss of at most 3 points."
    )
    gain = TREND | {"delta_ci_low": 0.001}
    assert "loss" not in text("_trend", FACTS | {"trends": [gain]})


@pytest.mark.parametrize(
    ("runs", "others", "expected"),
    [
        (1, 0, "1 of 30 runs is missing"),
        (12, 1, "12 of 30 runs and 1 pretrained or SFT model are missing"),
        (0, 2, "2 pretrained or SFT models are missing"),
    ],
)
def test_one_number_says_how_many_runs_are_missing(runs, others, expected):
    facts = {"num_missing": runs, "num_planned": 30, "missing": ["path"] * (runs + others)}
    assert words(text("_missing_count", facts)) == expected


def test_the_words_of_the_answer_explain_the_mitigations_and_the_training_sets(made_up):
    findings = words((made_up / "report/findings.rst").read_text())
    assert "*practical* not at all; *retrace* by the importance ratio, cut off at 1." in findings
    assert "**Trained on:** one-step, multi-step, algebra (100 generated word problems each)." in findings
    benchmarks = "one-step (60), multi-step (40), algebra (50)"
    assert f"**Accuracy:** the unweighted mean over 3 benchmarks of other problems: {benchmarks}." in findings
    assert set(WEIGHTS) == set(MITIGATIONS)
    sources = {"a": {"path": "openai/gsm8k", "size": None}, "b": {"path": "b.jsonl", "size": 9}}
    assert dataset_words({"grid": {"dataset": ["a", "b"]}, "datasets": sources}) == {
        "openai/gsm8k": ["a"],
        "the first 9 rows of b.jsonl": ["b"],
    }


@pytest.mark.parametrize(("delta", "expected"), [(-0.0633, "-6.3"), (0.0167, "+1.7"), (-0.0004, "+0.0")])
def test_deltas_of_accuracies_are_in_points(delta, expected):
    assert points(delta) == expected


def test_every_table_and_figure_has_a_caption(made_up):
    report = made_up / "report"
    stems = {path.stem for path in report.glob("*.csv")} - SOURCES | {path.stem for path in report.glob("*.svg")}
    stems = {"figure" if stem.startswith("figure_") else stem for stem in stems}
    assert stems == {path.stem.removeprefix("caption_") for path in report.glob("caption_*.rst")}


def of_another_model(sources: Sources) -> Sources:
    """Return the sources of a study of models that are not embedded."""
    models = {name: {"path": "Qwen/Qwen2.5-Math-1.5B", "revision": None} for name in sources.config["models"]}
    return sources._replace(config=sources.config | {"models": models})


def test_results_of_models_with_layer_dropout_are_shown_with_a_caution(made_up):
    sources = read_sources(made_up / "report")
    caution = "small-28 was pretrained with layer dropout, which makes a model unusually robust to skipped layers"
    without_results = {
        "caption_table1",
        "caption_table2_paper",
        "caption_config",
        "caption_provenance",
    }
    tables = build.make_tables(sources)
    for name, written in texts(sources, tables).items():
        assert (caution in written) == (name not in without_results), name
    assert caution in layer_dropout_note(sources.config)
    for figure in (made_up / "report").glob("*.svg"):
        assert "was pretrained with layer dropout" in words(re.sub(r"<[^>]+>", " ", figure.read_text())), figure.name
    others = of_another_model(sources)
    assert layer_dropout_note(others.config) == ""
    assert not any("layer dropout" in written for written in texts(others, tables).values())


@pytest.mark.parametrize(
    "card", sorted((ROOT / "nested_reft/embedded").glob("*/README.md")), ids=lambda path: path.parent.name
)
def test_models_with_layer_dropout_are_those_whose_cards_say_so(card):
    """`nested-reft pretrain` writes the card; the last column of its table holds the numbers of layers skipped."""
    table = card.read_text().split("| layers skipped |")[1].split("\n\n")[0]
    skipped = [row.strip(" |").split(" | ")[-1] for row in table.strip().splitlines()[1:]]
    assert len(skipped) == 3
    assert (card.parent.name in PRETRAINED_WITH_LAYER_DROPOUT) == any(cell != "none" for cell in skipped)


def test_missing_runs_are_listed(made_up, tmp_path):
    shutil.copytree(made_up / "results", tmp_path / "results")
    run = "train/model~small-28/dataset~algebra/skip_ratio~0.1/border~1/mitigation~retrace/seed~1"
    shutil.rmtree(tmp_path / "results" / run)
    log = tmp_path / f"logs/{run}.log"
    log.parent.mkdir(parents=True)
    log.write_text("INFO train starts\nError: no |memory|* is left\n")
    sources = collect(synthetic.study(models=1), tmp_path / "results", tmp_path / "logs")
    written = texts(sources)
    assert rf"- ``{run}``: no \|memory\|\* is left" in written["findings"]
    said = "1 of 60 runs is missing; 1 of 27 comparisons has fewer than 2 seeds."
    assert said in written["findings"]
    seeds = "1 to 2 seeds (runs are missing) and problems within benchmarks"
    assert (
        f"The intervals cover {seeds}." in written["findings"]
        and f"intervals over {seeds}." in written["caption_forest"]
    )
    assert "A dotted interval has fewer than 2 seeds" in written["caption_forest"]
    assert "the mean of up to 2 seeds" in written["caption_reward"]
    assert "1 of 60 runs is missing and left out. Interim: the verdicts wait" in written["caption_heat_map"]


def test_a_message_of_a_log_has_no_markup():
    assert literal("*a* |b| `c`_ \\d") == r"\*a\* \|b\| \`c\`\_ \\d"
