"""What MLflow shows of a study: names and descriptions of its runs, saved views, and columns to sort by.

The functions are pure; `mlflow_mirror.py` and `mlflow_report.py` send what they return.
"""

import base64
import csv
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nested_reft.config.sections import Evaluation, Nesting, Prompt, Section, Sft, Training
from nested_reft.config.study import BASELINE, INSTANCE, instance_label_alone

# Shown above the runs of a study. docs/how-to/mlflow.md explains the same filters at length.
HOW_TO_BROWSE = """Runs of a Nested-ReFT study: see *Views* (top right), or paste a filter into the search field:

- `tags.stage = 'study'`: the run that holds the tables and figures of the whole study
- `tags.stage = 'train'`: the trainings; the chart icon shows their reward curves first
- `tags.stage = 'train' and tags.mitigation = 'retrace'`
- `tags.stage = 'train' and tags.verdict = 'worse'`: instances with a lower accuracy than the baseline; the other
  verdicts are `better`, `equivalent` (a change too small to matter) and `inconclusive` (too little data)
- `tags.stage = 'train' and metrics."result/delta" > 0`
- `tags.stage = 'evaluate' and tags.product = 'train'`: evaluations, each with a table of sampled completions
"""

DELTA, ACCURACY = "metrics.`result/delta`", "metrics.`result/accuracy`"
SCORE = "metrics.`eval/overall/pass_at_1`"
INSTANCE_TAGS = ["tags.`mitigation`", "tags.`skip_ratio`"]
OUTCOME = [*INSTANCE_TAGS, "tags.`verdict`", DELTA, "tags.`interval`", "tags.`p_holm`", ACCURACY]
PLACE = ["tags.`seed`", "tags.`model`", "tags.`dataset`"]

# name -> (filter, column to sort by, columns in the order in which they are shown)
VIEWS = {
    "Trainings by delta": ("tags.stage = 'train'", DELTA, [*OUTCOME, *PLACE]),
    "Worse than the baseline": ("tags.stage = 'train' and tags.verdict = 'worse'", DELTA, [*OUTCOME, *PLACE]),
    "Evaluations by accuracy": (
        "tags.stage = 'evaluate'",
        SCORE,
        ["tags.`product`", *INSTANCE_TAGS, SCORE, *PLACE],
    ),
    "Tables and figures": ("tags.stage = 'study'", "attributes.start_time", []),
}
# What the record of a stage is called in a description.
NAMES_OF_STAGES = {
    "sft": "Warm-up (SFT)",
    "train": "Training",
    "evaluate": "Evaluation",
    "measure_speed": "Measurement of speed",
}
# Pixels of the columns. All of a view fit into a window of 1400 pixels.
WIDTHS = {
    "attributes.`Run Name`": 225,
    "runDateAndNestInfo": 140,
    "tags.`mitigation`": 80,
    "tags.`skip_ratio`": 80,
    "tags.`verdict`": 95,
    DELTA: 95,
    "tags.`interval`": 130,
    "tags.`p_holm`": 75,
    ACCURACY: 110,
    SCORE: 160,
    "tags.`seed`": 60,
}
FIRST_VIEW = "trainings-by-delta"

# MLflow sorts groups of metrics by their names, upper case first. The reward is therefore the first curve of a run.
REWARD = ("reward", "reward_std")
# The sections of a record's settings, whose defaults a description leaves out.
SECTIONS: dict[str, type[Section]] = {
    "training": Training,
    "nesting": Nesting,
    "sft": Sft,
    "evaluation": Evaluation,
    "prompt": Prompt,
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
            "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns],
            "columnWidths": WIDTHS,
            "runsHiddenMode": "FIRST_10_RUNS",
            "hideEmptyCharts": True,
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = {"name": name, "createdAt": number, "updatedAt": number, "state": f"deflate;{packed}"}
        tags[f"mlflow.sharedViewState.{name.lower().replace(' ', '-')}"] = json.dumps(view)
    return tags


def runs_address(server: str, experiment: str) -> str:
    """Return the address of the trainings of a study in MLflow's UI, sorted by their delta.

    The address names the kind of page because MLflow otherwise opens any experiment on its page for GenAI traces.
    """
    where = f"{server.rstrip('/')}/#/experiments/{experiment}/runs"
    return f"{where}?workflowType=machine_learning&viewStateShareKey={FIRST_VIEW}"


def run_name(stage: str, axes: Mapping[str, Any]) -> str:
    """Return the name of a tracked run. What differs within a study comes first, because MLflow cuts long names.

    Examples: `15% retrace s0 | tiny-28 mixed`, `baseline s0 evaluated | tiny-28 mixed`, `sft s0 | tiny-28 mixed`.
    """
    product = instance_label_alone(axes) if "mitigation" in axes else axes.get("product", stage)
    seed = f" s{axes['seed']}" if "seed" in axes else ""
    where = " ".join(axes[axis] for axis in ("model", "dataset") if axis in axes)
    return f"{product}{seed}{' evaluated' if stage == 'evaluate' else ''} | {where}"


def rounded(value: float) -> float:
    """Return a number with three significant digits, for display only."""
    return float(f"{value:.3g}")


def curve_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a step with the names that its numbers have in MLflow."""
    return {f"Reward/{name}" if name in REWARD else name: value for name, value in row.items()}


def result_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the result of a stage with the names and the digits that it has in MLflow.

    A name without a group gets the group `result`, so that MLflow keeps it apart from the curves.
    """
    return {name if "/" in name else f"result/{name}": rounded(value) for name, value in metrics.items()}


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record that differ from the defaults, as `training.max_steps` -> value."""
    return {
        f"{section}.{name}": value
        for section, schema in SECTIONS.items()
        for name, value in settings.get(section, {}).items()
        if name not in schema.model_fields or value != schema.model_fields[name].default
    }


def description(record: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Return the description of a finished run in Markdown: what it is, its settings, its result, its files.

    Args:
        record: the content of run.json.
        metrics: the content of metrics.json.
    """
    axes = ", ".join(f"{name} {value}" for name, value in record["run"].items())
    what = NAMES_OF_STAGES[record["stage"]]
    changed = changed_settings(record["settings"])
    settings = [f"- `{name}`: {value}" for name, value in changed.items()] or ["- none"]
    shown = {name: value for name, value in metrics.items() if "/" not in name or name.endswith("/pass_at_1")}
    results = [f"- `{name}`: {value:.3g}" for name, value in shown.items()]
    lines = [f"{what} of the study **{record['study']}**: {axes}.", "", "Settings that differ from the defaults:", ""]
    lines += [*settings, "", "Result:", "", *results, "", f"Files: `{record['uid'].rpartition('@')[0]}`"]
    return "\n".join(lines)


def signed(value: str, unit: str) -> str:
    """Return a number of the report's tables with its sign and three significant digits; an empty cell stays empty."""
    return f"{float(value) * (100 if unit == '%' else 1):+.3g}{unit}" if value else ""


def delta_columns(report: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return `instance_key` -> the report's deltas of that instance, as MLflow columns.

    The delta of the accuracy is a number, so that MLflow sorts by it. All other values are texts for its tags.
    """
    columns: dict[tuple[Any, ...], dict[str, Any]] = {}
    with (report / "deltas.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values = columns.setdefault(instance_key(row), {})
            if row["metric"] == "accuracy":
                values["verdict"] = row["verdict"]
                low, high = signed(row["ci_low"], ""), signed(row["ci_high"], "")
                values["interval"] = f"[{low}, {high}]" if low else ""
                values["p_holm"] = f"{float(row['p_holm']):.3g}" if row["p_holm"] else ""
                if row["absolute_delta"]:
                    values["result/delta"] = rounded(float(row["absolute_delta"]))
            else:
                values[f"delta_{row['metric']}"] = signed(row["relative_delta"], "%")
    return columns


def instance_key(axes: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies an instance within a study, alike for a row of a CSV file and for the axes of a run."""
    return (axes["model"], axes["dataset"], *(type(BASELINE[axis])(axes[axis]) for axis in INSTANCE))
