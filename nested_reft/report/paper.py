"""The results and the configuration of the paper, for comparison with a study."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from nested_reft.config.sections import Decontamination, Evaluation, Grid, Nesting, Prompt, Sft, Training
from nested_reft.report.sources import CELL
from nested_reft.report.tables import table2

# Table 2 of the paper, its minus signs restored: the best and the worst delta per model and dataset.
PAPER_TABLE_2 = {
    "Qwen2.5-Math-1.5B-Instruct": {"SVAMP": (0.008, -0.016), "GSM8K": (0.015, -0.006), "Math12k": (0.026, -0.005)},
    "Qwen2.5-Math-7B-Instruct": {"SVAMP": (0.022, -0.070), "GSM8K": (0.010, -0.017), "Math12k": (-0.003, -0.022)},
}


def paper_table2() -> pd.DataFrame:
    """Return the paper's own Table 2. The paper gives neither intervals nor tests."""
    deltas = pd.DataFrame(
        {"model": model, "dataset": dataset, "absolute_delta": delta}
        for model, datasets in PAPER_TABLE_2.items()
        for dataset, extremes in datasets.items()
        for delta in extremes
    )
    return table2(deltas)[[*CELL, "best_delta", "best_paper_form", "worst_delta", "worst_paper_form"]]


def config_table(config: Mapping[str, Any]) -> pd.DataFrame:
    """Return every key in which the study differs from the default, which is the paper's value where it gives one.

    `config/README.md` lists the source of every default.
    """
    defaults: dict[str, dict[str, Any]] = {
        "grid": {name: field.default for name, field in Grid.model_fields.items() if not field.is_required()},
        "decontamination": Decontamination().model_dump(),
        "prompt": Prompt().model_dump(),
        "nesting": dict(Nesting()),  # with `whole_share`, which the settings have only if it is not 0
        "sft": Sft().model_dump(),
        "training": Training().model_dump(),
        "evaluation": Evaluation().model_dump(),
    }
    rows = [
        {"key": f"{section}.{name}", "paper": json.dumps(value), "study": json.dumps(config[section][name])}
        for section, values in defaults.items()
        for name, value in values.items()
        if config[section].get(name, value) != value
    ]
    return pd.DataFrame(rows, columns=["key", "paper", "study"])
