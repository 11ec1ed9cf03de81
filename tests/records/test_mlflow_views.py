"""What MLflow shows of a study: the filters of its description, and the saved views."""

import base64
import json
import re
import zlib

from nested_reft.records import mlflow_views
from nested_reft.records.mlflow_views import delta_columns
from tests.conftest import ROOT


def test_the_filters_that_the_store_and_the_docs_propose_find_what_they_say(mirrored_study):
    client, experiment, _ = mirrored_study
    filters = re.findall(r"`(tags\..+?)`[,:;\n]", mlflow_views.HOW_TO_BROWSE)
    found = {text: len(client.search_runs([experiment], text)) for text in filters}
    positive = sum(float(of["delta/accuracy"]) > 0 for of in delta_columns(mirrored_study[2]).values()) * 2
    resolved = sum(of["verdict"] == "resolved" for of in delta_columns(mirrored_study[2]).values()) * 2
    assert list(found.values()) == [1, 20, 6, resolved, positive, 0]
    assert resolved > 0
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
