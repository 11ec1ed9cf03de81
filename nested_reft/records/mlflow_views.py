"""The views of a study in MLflow: a description, saved views, and columns to sort by.

The functions are pure; `mlflow_mirror.py` sends what they return.
"""

import base64
import csv
import json
import zlib
from pathlib import Path
from typing import Any

from nested_reft.config.study import BASELINE, INSTANCE, RUN

# Shown above the runs of a study. docs/how-to/mlflow.md explains the same filters at length.
HOW_TO_BROWSE = """Runs of a Nested-ReFT study: see *Views* (top right), or paste a filter into the search field:

- `tags.stage = 'study'`: the run that holds the tables and figures of the whole study
- `tags.stage = 'train'`: the trainings; sort by `delta/accuracy`, select some and compare `reward`
- `tags.stage = 'train' and tags.mitigation = 'retrace'`
- `tags.stage = 'train' and tags.verdict = 'resolved'`: deltas that are more than noise
- `tags.stage = 'train' and metrics."delta/accuracy" > 0`
- `tags.stage = 'evaluate' and tags.product = 'train'`
"""

AXES = [f"tags.`{axis}`" for axis in RUN]
INSTANCE_OF_CELL = ["model", "dataset", *INSTANCE]
DELTA = [f"metrics.`delta/accuracy{suffix}`" for suffix in ("", "_ci_low", "_ci_high", "_p_holm")] + ["tags.`verdict`"]
SCORE = "metrics.`eval/overall/pass_at_1`"

# name -> (filter, column to sort by, columns)
VIEWS = {
    "Trainings by delta": ("tags.stage = 'train'", DELTA[0], [*AXES, *DELTA, SCORE]),
    "Resolved deltas": ("tags.stage = 'train' and tags.verdict = 'resolved'", DELTA[0], [*AXES, *DELTA, SCORE]),
    "Evaluations by accuracy": ("tags.stage = 'evaluate'", SCORE, ["tags.`product`", *AXES, SCORE]),
    "Tables and figures": ("tags.stage = 'study'", "attributes.start_time", []),
}


def experiment_tags() -> dict[str, str]:
    """Return the tags of a study's experiment: its kind, its description, its saved views.

    A saved view has the form in which MLflow's UI saves one, a compressed JSON. If a later version of MLflow cannot
    read it, only its menu of views lacks the entry.
    """
    tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": HOW_TO_BROWSE}
    for number, (name, (text, order, columns)) in enumerate(VIEWS.items()):
        state = {
            "searchFilter": text,
            "orderByKey": order,
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "runsHiddenMode": "FIRST_10_RUNS",
            "hideEmptyCharts": True,
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = {"name": name, "createdAt": number, "updatedAt": number, "state": f"deflate;{packed}"}
        tags[f"mlflow.sharedViewState.{name.lower().replace(' ', '-')}"] = json.dumps(view)
    return tags


def delta_columns(report: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the axes `INSTANCE_OF_CELL` -> the report's deltas of that instance, as MLflow columns."""
    columns: dict[tuple[Any, ...], dict[str, Any]] = {}
    with (report / "deltas.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            instance = (type(BASELINE[axis])(row[axis]) for axis in INSTANCE)  # the CSV file holds texts
            values = columns.setdefault((row["model"], row["dataset"], *instance), {})
            if row["metric"] == "accuracy":
                values["verdict"] = row["verdict"]
                values["delta/accuracy"] = row["absolute_delta"]
                values |= {f"delta/accuracy_{name}": row[name] for name in ("ci_low", "ci_high", "p_holm")}
            else:
                values[f"delta/{row['metric']}_relative"] = row["relative_delta"]
    return columns
