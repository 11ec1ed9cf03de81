"""What a training would have logged under other mitigations, from the completions that it recorded, without a model.

The completions are those of the run: its own mitigation has trained the policies that they come from. Replay shows
what another mitigation makes of the same completions, and not where it would have led the policy.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from nested_reft.config.parse import option_name, parse_settings
from nested_reft.config.sections import Nesting, Training
from nested_reft.config.stage_settings import TrainStage
from nested_reft.off_policy import MicroBatch, clip_metrics, metrics_of_step
from nested_reft.off_policy_metrics import WEIGHT_BINS
from nested_reft.records.completions import read_completions, recorded_settings
from nested_reft.records.files import read_rows
from nested_reft.report import style
from nested_reft.report.figures.replay import replay as replay_figure
from nested_reft.stages.completions import to_micro_batches

COUNTS = "sampling/token_weight_counts"


def replay_step(
    batches: Sequence[MicroBatch],
    num_processes: int,
    mitigation: str,
    nesting: Nesting,
    training: Training,
    is_nested: bool,
) -> dict[str, Any]:
    """Return the entries of `metrics.jsonl` that a step would have under a mitigation.

    Args:
        batches: the micro-batches of the step, those of rank 0 first.
        num_processes: the number of ranks.
        mitigation: the name of the mitigation.
        nesting: the parameters of the mitigations.
        training: the settings of the training.
        is_nested: whether layers were skipped while sampling.
    """
    metrics, counts = metrics_of_step(batches, mitigation, nesting, is_nested)
    per_rank = len(batches) // num_processes
    clips = [
        clip_metrics(batches[index::per_rank], mitigation, training, is_nested, nesting.whole_share)
        for index in range(per_rank)
    ]
    for name in dict.fromkeys(name for clip in clips for name in clip):
        values = [clip[name] for clip in clips if name in clip]
        metrics[name] = sum(values) / len(values)  # TRL logs the mean over the micro-batches
    return {**metrics, COUNTS: counts}


def replay(run: Path, mitigations: Sequence[str], nesting: Nesting, training: Training) -> Iterator[dict[str, Any]]:
    """Yield a row for each recorded step of a run and each mitigation: `mitigation`, `step`, and the metrics.

    Args:
        run: the folder of the training.
        mitigations: the names of the mitigations.
        nesting: their parameters.
        training: the settings of the training.

    Raises:
        UserError: the training keeps no record of its completions, or a file of it is missing or damaged.
    """
    for step, rows in tqdm(read_completions(run), unit="step", disable=not sys.stderr.isatty()):
        batches = to_micro_batches(rows)
        num_processes = len(rows["rank"].unique())
        is_nested = len(rows["skipped_layers"][0]) > 0
        for mitigation in mitigations:
            metrics = replay_step(batches, num_processes, mitigation, nesting, training, is_nested)
            yield {"mitigation": mitigation, "step": step} | metrics


def settings_of(run: Path, parameters: Mapping[str, Any]) -> TrainStage:
    """Return the settings of a training, with other parameters of the mitigations where they are not None.

    Raises:
        UserError: the folder is not that of a training with a record, or a parameter is out of its range.
    """
    settings: TrainStage = parse_settings(TrainStage, recorded_settings(run))
    changed = {name: value for name, value in parameters.items() if value is not None}
    nesting = parse_settings(Nesting, settings.nesting.model_dump() | changed, option_name)
    return settings.model_copy(update={"nesting": nesting})


def largest_difference(rows: Sequence[Mapping[str, Any]], logged: Sequence[Mapping[str, Any]]) -> float:
    """Return by how much replayed metrics differ at most from those that the run has logged; 0 means bit for bit.

    Args:
        rows: the rows of the run's own mitigation.
        logged: the rows of `metrics.jsonl`.
    """
    by_step = {row["step"]: row for row in logged}
    differences = [
        np.abs(np.subtract(value, by_step[row["step"]][name])).max()
        for row in rows
        for name, value in row.items()
        if name in by_step[row["step"]]
    ]
    return float(max(differences))


# The columns of the summary that are means over the steps, and the metric of each. Not every loss clips.
MEANS = {
    "mean weight": "sampling/importance_sampling_ratio/mean",
    "ESS of the weights": "sampling/importance_sampling_ratio/ess",
    "ratios changed": "sampling/frac_modified_importance_sampling_ratio",
    "clipped by the loss": "clip_ratio/region_mean",
}


def summary(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row per mitigation: the means over the steps, and the largest weight of all steps."""
    table = pd.DataFrame(rows)
    by_mitigation = table.groupby("mitigation", sort=False)
    means = pd.DataFrame({title: by_mitigation[name].mean() for title, name in MEANS.items() if name in table})
    means.insert(1, "largest weight", by_mitigation["sampling/importance_sampling_ratio/max"].max())
    return means.reset_index()


def write_replay(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the metrics of each step, the counts of token weights over all steps, and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.drop(columns=COUNTS).to_csv(out / "replay.csv", index=False)
    counts = [
        {"mitigation": name, "weight": weight, "tokens": tokens}
        for name, steps in table.groupby("mitigation", sort=False)
        for weight, tokens in zip(WEIGHT_BINS, np.sum(list(steps[COUNTS]), axis=0), strict=True)
    ]
    pd.DataFrame(counts).to_csv(out / "token_weights.csv", index=False)
    style.save(replay_figure(table), out / "replay")


def text(run: Path, rows: Sequence[Mapping[str, Any]], settings: TrainStage) -> str:
    """Return the replay of a run as text: the run, how far off-policy it is, a row per mitigation, and a self-check.

    Args:
        run: the folder of the training.
        rows: the rows of `replay`.
        settings: the settings that were replayed.
    """
    own, first = settings.run.mitigation, [row for row in rows if row["mitigation"] == rows[0]["mitigation"]]
    means = pd.DataFrame(first)[["sampling/kl", "sampling/acceptance_rate", "sampling/ess"]].mean()
    lines = [
        f"{run}: steps {first[0]['step']} to {first[-1]['step']}, trained with {own} at skip ratio "
        f"{settings.run.skip_ratio:g}",
        "Means over the steps: KL(mu || pi) {:.4g} nats per token, acceptance rate {:.4g}, ESS of the ratio "
        "{:.4g}".format(*means),
        "",
        summary(rows).to_markdown(index=False, floatfmt=".4g"),
        "",
    ]
    replayed = [row for row in rows if row["mitigation"] == own]
    if replayed and settings.nesting == settings_of(run, {}).nesting:
        folder = run if (run / "run.json").exists() else run / "checkpoints"
        difference = largest_difference(replayed, read_rows(folder / "metrics.jsonl", torn_end=True))
        equal = "equals" if difference == 0 else f"differs by at most {difference:.1g} from"
        lines += [f"The replay of {own} {equal} what the run has logged."]
    return "\n".join(lines)
