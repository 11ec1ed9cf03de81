"""What MLflow shows of a study: the filters of its description, and the saved views."""

import base64
import json
import re
import zlib

import pytest

from nested_reft.config.study import BASELINE
from nested_reft.records import mlflow_views
from nested_reft.records.mlflow_views import changed_settings, curve_names, delta_columns, run_name
from tests.conftest import ROOT


def test_the_filters_that_the_store_and_the_docs_propose_find_what_they_say(mirrored_study):
    client, experiment, _ = mirrored_study
    filters = re.findall(r"`(tags\..+?)`[,:;\n]", mlflow_views.HOW_TO_BROWSE)
    found = {text: len(client.search_runs([experiment], text)) for text in filters}
    positive = sum(of["result/delta"] > 0 for of in delta_columns(mirrored_study[2]).values()) * 2
    worse = sum(of["verdict"] == "worse" for of in delta_columns(mirrored_study[2]).values()) * 2
    assert list(found.values()) == [1, 20, 6, worse, positive, 0]
    assert worse > 0
    docs = (ROOT / "docs/how-to/mlflow.md").read_text()
    assert all(text in docs for text in filters)
    assert client.get_experiment(experiment).tags["mlflow.note.content"] == mlflow_views.HOW_TO_BROWSE


def test_saved_views_ask_for_what_is_there(mirrored_study):
    """MLflow shows an empty table, without an error, for a mistyped column or filter."""
    client, experiment, _ = mirrored_study
    there = {"attributes.start_time"}
    for run in client.search_runs([experiment]):
        there |= {f"tags.`{name}`" for name in run.data.tags} | {f"metrics.`{name}`" for name in run.data.metrics}
    for name, (text, order, columns) in mlflow_views.VIEWS.items():
        found = client.search_runs([experiment], text, order_by=[f"{order} DESC"])
        if "evaluate" not in text:  # the made-up study has no runs of this stage
            assert found, name
            assert {order, *columns} <= there, name
    saved = client.get_experiment(experiment).tags["mlflow.sharedViewState.trainings-by-delta"]
    state = json.loads(saved)["state"].removeprefix("deflate;")
    assert json.loads(zlib.decompress(base64.b64decode(state)))["searchFilter"] == "tags.stage = 'train'"
    saved = json.loads(zlib.decompress(base64.b64decode(state)))
    assert saved["columnOrder"][2:] == saved["selectedColumns"]


@pytest.mark.parametrize(
    ("stage", "axes", "name"),
    [
        ("train", {"skip_ratio": 0.15, "border": 1, "mitigation": "retrace"}, "15% retrace s0 | tiny mixed"),
        ("train", {"skip_ratio": 0.05, "border": 2, "mitigation": "base"}, "5% border 2 base s0 | tiny mixed"),
        ("train", BASELINE, "baseline s0 | tiny mixed"),
        ("sft", {}, "sft s0 | tiny mixed"),
        ("evaluate", {"product": "sft"}, "sft s0 evaluated | tiny mixed"),
        (
            "evaluate",
            {axis: str(value) for axis, value in BASELINE.items()},
            "baseline s0 evaluated | tiny mixed",
        ),
    ],
)
def test_the_name_of_a_run_begins_with_what_differs(stage, axes, name):
    assert run_name(stage, {"model": "tiny", "dataset": "mixed", "seed": 0, **axes}) == name


def test_the_reward_is_the_first_curve_of_a_training():
    """MLflow shows groups of curves, and the curves of a group, in the order of their names."""
    names = curve_names({"clip_ratio/low": 0, "reward_std": 0, "reward": 0, "frac_reward_zero_std": 0})
    assert min(names) == "Reward/reward"


def test_a_description_states_the_settings_that_differ_from_the_defaults():
    changed = changed_settings(
        {"training": {"max_steps": 7, "num_iterations": 1}, "prompt": {"template": "qwen-math"}}
    )
    assert changed == {"training.max_steps": 7}
