"""What the rules share: the validated study, its grid, and the settings that each stage is told.

A stage gets its section of the configuration as one canonical JSON string. Snakemake compares these
strings, so a changed evaluation key reruns evaluations and nothing else, and the order of keys in the
YAML file never matters.
"""

import os
import sys
from pathlib import Path

import pandas as pd
from snakemake.utils import Paramspace

from nested_reft.config.parse import canonical, parse_settings
from nested_reft.config.study import Study, expand_grid
from nested_reft.errors import UserError

try:
    STUDY = parse_settings(Study, config)
except UserError as error:
    # No traceback: this is the one place where a user's mistake in the config surfaces.
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(2)

# The captions of the report read the config: give them the validated one, defaults included.
config.update(STUDY.model_dump())

# The rules call `nested-reft`: find the one beside this Snakemake, whether its environment is activated or not.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

RESULTS = f"results/{STUDY.study}"
REPORTS = f"reports/{STUDY.study}"

GRID = pd.DataFrame([run.model_dump() for run in expand_grid(STUDY)]).astype(str)
RUNS = Paramspace(GRID)
WARMUPS = Paramspace(GRID[["model", "dataset", "seed"]].drop_duplicates())

# Everything that is evaluated: `pretrained/...`, `sft/...` and `train/...`.
PRODUCTS = [
    *(f"pretrained/model~{model}" for model in STUDY.grid.model),
    *(f"sft/{warmup}" for warmup in WARMUPS.instance_patterns),
    *(f"train/{run}" for run in RUNS.instance_patterns),
]

# The report: tables and figures by name, and captions that `analyse` writes beside them.
TABLES = ["table1", "table2", "table2_paper", "strategy_counts", "stages", "deltas"]
TABLES += ["mcnemar", "efficiency", "config", "provenance"]
PLOTS = ["frontier", "heat_map", "speed_up", "time_split", "off_policy", "reward"]
FIGURES = [*(f"figure_{dataset}" for dataset in STUDY.grid.dataset), *PLOTS]
CAPTIONS = [*TABLES, *PLOTS, "figure"]


# Its first page: what was run, what holds, what is not resolved.
report: os.path.abspath(f"{REPORTS}/findings.rst")


wildcard_constraints:
    model="[^/]+",
    dataset="[^/]+",
    skip_ratio="[^/]+",
    mitigation="[^/]+",
    seed=r"\d+",
    product="(pretrained|sft|train)/.+",


def model_settings(wildcards):
    """What `prepare model` is told: the source of the model."""
    return canonical(STUDY.models[wildcards.model])


def dataset_settings(wildcards):
    """What `prepare dataset` is told: the source of the training set, the section `decontamination`."""
    source = STUDY.datasets[wildcards.dataset]
    return canonical({"dataset": source, "decontamination": STUDY.decontamination})


def sft_settings(wildcards):
    """What `sft` is told: the run, the section `sft`, the prompt."""
    return canonical({"run": dict(wildcards), "sft": STUDY.sft, "prompt": STUDY.prompt})


def train_settings(wildcards):
    """What `train` is told: the run, the sections `training` and `nesting`, the prompt."""
    sections = {
        "training": STUDY.training,
        "nesting": STUDY.nesting,
        "prompt": STUDY.prompt,
    }
    return canonical({"run": dict(wildcards), **sections})


def evaluate_settings(wildcards):
    """What `evaluate` is told: which product it is, the section `evaluation`, the prompt."""
    product, *axes = wildcards.product.split("/")
    run = {"product": product, **dict(axis.split("~", 1) for axis in axes)}
    return canonical(
        {"run": run, "evaluation": STUDY.evaluation, "prompt": STUDY.prompt}
    )


def analyse_settings(wildcards):
    """What `analyse` is told: the study, without what cannot change a table."""
    return canonical(STUDY.model_dump(exclude={"tracking", "jobs"}))


def get_model(wildcards):
    """The model of a product: a folder of weights, or the note that says where the pretrained one is."""
    product = wildcards.product.split("/")[0]
    return f"{RESULTS}/{wildcards.product}/{'model.json' if product == 'pretrained' else 'model'}"


def shown(file, category, what, caption=None):
    """A file of the HTML report; its caption is written with it, so that it states this study's numbers."""
    caption = os.path.abspath(f"{REPORTS}/caption_{caption or Path(file).stem}.rst")
    return report(
        f"{REPORTS}/{file}", caption=caption, category=category, labels={"what": what}
    )


def summary():
    """Where everything is, told at the end of a study."""
    return (
        f"\nThe study '{STUDY.study}' is complete.\n"
        f"  tables, figures   {REPORTS}/\n"
        f"  results           {RESULTS}/\n"
        f"  HTML report       make report\n"
        f"  MLflow UI         make ui\n"
    )
