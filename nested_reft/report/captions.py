"""The words of a report: what was run, what holds, what is not resolved; a caption for each table and figure.

Each sentence is made from the tables, so that a caption states the numbers of its own study. They are
reStructuredText, which `snakemake --report` shows beside each file, and `findings` as its first page.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def signed(value: float) -> str:
    """Return a delta of shares as the paper prints it: three decimals, with its sign."""
    return f"{value:+.3f}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def interval(row: Mapping[Any, Any], low: str = "ci_low", high: str = "ci_high") -> str:
    """Return an interval in brackets, or that there is none."""
    return "no interval" if pd.isna(row[low]) else f"[{signed(row[low])}, {signed(row[high])}]"


def instance(row: Mapping[Any, Any]) -> str:
    """Return what an instance is called in a sentence."""
    return f"{100 * row['skip_ratio']:g} % {row['mitigation']} on {row['model']}, {row['dataset']}"


def bullets(lines: list[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {line}" for line in lines)


def section(title: str, *paragraphs: str) -> str:
    """Return a titled section."""
    return "\n\n".join([f"{title}\n{'-' * len(title)}", *(text for text in paragraphs if text)])


def what_was_run(config: Mapping[str, Any], provenance: Mapping[str, Any], results: pd.DataFrame) -> str:
    """Return the grid, the benchmarks and what is missing of them, in words."""
    grid = config["grid"]
    instances = len(grid["skip_ratio"]) * len(grid["mitigation"])
    planned = len(grid["model"]) * len(grid["dataset"]) * len(grid["seed"]) * (1 + instances)
    sizes = results.groupby("benchmark", sort=False)["n"].max()
    benchmarks = ", ".join(f"{name} ({n})" for name, n in sizes.items())
    samples = config["evaluation"].get("num_samples", 1)
    absent = provenance.get("missing", [])
    ratios = ", ".join(f"{100 * ratio:g} %" for ratio in grid["skip_ratio"])
    trained = results[results["product"] == "train"]
    present = trained.drop_duplicates(["model", "dataset", "skip_ratio", "mitigation", "seed"])
    return "\n\n".join(
        text
        for text in (
            f"Study **{config['study']}** of Nested-ReFT (arXiv 2508.10123): reinforced fine-tuning in which "
            "completions are sampled from the model itself with a random subset of its layers skipped. Models: "
            f"{', '.join(grid['model'])}; training sets: {', '.join(grid['dataset'])}; skip ratios {ratios}; "
            f"mitigations {', '.join(grid['mitigation'])}; {plural(len(grid['seed']), 'seed')}; "
            f"{config['training']['max_steps']} steps each. With a baseline that skips nothing for each model, "
            f"training set and seed these are {planned} runs, of which {len(present)} are here.",
            f"Every model is evaluated on {plural(len(sizes), 'benchmark')} (problems): {benchmarks}; "
            f"{plural(samples, 'completion')} per problem. Accuracy is the unweighted mean over benchmarks.",
            f"**Missing**, and left out of everything below:\n\n{bullets(absent)}" if absent else "",
        )
        if text
    )


def what_holds(accuracy: pd.DataFrame, level: float, seeds: int) -> str:
    """Return the deltas of the accuracy that are resolved, one by one, and what that means."""
    resolved = accuracy[accuracy["verdict"] == "resolved"]
    tested = accuracy[accuracy["verdict"] != "missing"]
    if resolved.empty:
        return f"None of the {len(tested)} accuracy deltas to the baseline is resolved at the level {level:g}."
    lines = [
        f"{instance(row)}: {signed(row['absolute_delta'])} {interval(row)}, Holm p = {row['p_holm']:.2g}"
        for row in resolved.sort_values("absolute_delta").to_dict("records")
    ]
    text = (
        f"{len(resolved)} of {len(tested)} accuracy deltas to the baseline are resolved (p below {level:g} after "
        f"Holm's correction over the instances of their cell):\n\n{bullets(lines)}"
    )
    if seeds == 1:
        text += (
            "\n\nWith one seed this says that two trained models differ, not that their mitigations do: two runs of "
            "the same mitigation can differ as much. Run more seeds before you believe one to be better or worse."
        )
    return text


def what_is_not_resolved(accuracy: pd.DataFrame, seeds: int, counts: pd.DataFrame) -> str:
    """Return what the study cannot tell, and how large a delta it could have seen."""
    open_ = accuracy[accuracy["verdict"] == "not resolved"]
    texts = []
    if len(open_):
        half = ((open_["ci_high"] - open_["ci_low"]) / 2).median()
        reach = (
            f"Their intervals reach {half:.3f} to either side (median): smaller effects are out of sight here."
            if half > 0
            else "Most agree with the baseline on every problem; what other problems would say no resampling tells."
        )
        texts.append(
            f"{plural(len(open_), 'accuracy delta')} from {signed(open_['absolute_delta'].min())} to "
            f"{signed(open_['absolute_delta'].max())} cannot be told from none. {reach}"
        )
    if seeds == 1:
        texts.append(
            "There is one seed. Intervals and p are about these trained models and cover the sampling of problems; "
            "how much another seed would change is not in them, and no speed has an interval."
        )
    if counts[["best_p", "worst_p"]].min().min() >= 0.05:
        texts.append("No mitigation holds the best or the worst instance more or less often than chance would give.")
    return "\n\n".join(texts)


def write_captions(
    config: Mapping[str, Any], provenance: Mapping[str, Any], results: pd.DataFrame, tables: Mapping[str, pd.DataFrame]
) -> dict[str, str]:
    """Return name -> text: `findings`, the first page, and `caption_<name>` for each table and figure.

    Args:
        config: the study's.
        provenance: what the runs were made with, and what is missing.
        results: the long table.
        tables: the tables of the report by name.
    """
    grid, confidence = config["grid"], config["analysis"]["confidence"]
    level, percent = round(1 - confidence, 10), f"{100 * confidence:g} %"
    deltas, counts, efficiency = tables["deltas"], tables["strategy_counts"], tables["efficiency"]
    accuracy = deltas[deltas["metric"] == "accuracy"]
    speed = deltas[deltas["metric"] == "token_speed_tok_s"]
    seeds = len(grid["seed"])
    resolved, tested = int((accuracy["verdict"] == "resolved").sum()), int((accuracy["verdict"] != "missing").sum())
    verdicts = f"{resolved} of {tested} accuracy deltas are resolved"
    cover = "problems within benchmarks (one seed)" if seeds == 1 else f"{seeds} seeds and problems within benchmarks"
    absent = provenance.get("missing", [])
    left_out = f" {plural(len(absent), 'missing result')} left out." if absent else ""

    here = tables["table2"].dropna(subset="best_by_chance")
    extremes = "; ".join(
        f"{row['model']}, {row['dataset']}: best {signed(row['best_delta'])} ({row['best_instance']}, "
        f"{row['best_verdict']}), worst {signed(row['worst_delta'])} ({row['worst_instance']}, "
        f"{row['worst_verdict']}), and {signed(row['best_by_chance'])} / {signed(-row['best_by_chance'])} by chance"
        for row in here.to_dict("records")
    )
    held = "; ".join(
        f"{row['mitigation']} best {row['best']}, worst {row['worst']}, neither {row['neutral']} (by chance "
        f"{row['best_by_chance']:.2g}, {row['worst_by_chance']:.2g}, {row['neutral_by_chance']:.2g})"
        for row in counts.to_dict("records")
    )
    stages = "; ".join(
        f"{row['model']}, {row['dataset']}, {row['product']}: {row['accuracy']:.3f} [{row['ci_low']:.3f}, "
        f"{row['ci_high']:.3f}]"
        for row in tables["stages"].dropna(subset="accuracy").to_dict("records")
    )
    faster = efficiency.dropna(subset="sampling_speed_up")
    gains = (
        f"Measured between {faster['sampling_speed_up'].min():.3f} and {faster['sampling_speed_up'].max():.3f}; at "
        f"most {efficiency['bound'].max():.3f} by Property 1 and {efficiency['bound_with_lm_head'].max():.3f} with "
        "the output projection."
        if len(faster)
        else "No run to measure."
    )
    slowest, fastest = 100 * speed["relative_delta"].min(), 100 * speed["relative_delta"].max()
    speeds = f"Token speeds change by {slowest:+.1f} % to {fastest:+.1f} %"

    texts = {
        "findings": "\n\n".join(
            [
                section("What was run", what_was_run(config, provenance, results)),
                section("What holds", what_holds(accuracy, level, seeds)),
                section("What is not resolved", what_is_not_resolved(accuracy, seeds, counts)),
                section(
                    "Where to look",
                    "*1 Setup* holds Table 1; *2 Findings* Table 2, the counts and the grid at a glance; *3 Detail* "
                    "all deltas, speeds, off-policyness and rewards; *4 Provenance* commit, versions, hardware, and "
                    f"{plural(len(tables['config']), 'key')} in which this study differs from the paper's values.",
                ),
            ]
        ),
        "table1": ("Table 1. Layers N, width W, and the layers k = round(x N) that a roll-out skips at each ratio x."),
        "table2": (
            "Table 2. The best and the worst accuracy delta to the baseline over "
            f"{len(grid['skip_ratio']) * len(grid['mitigation'])} instances, with {percent} intervals over {cover}. "
            f"{extremes}. The magnitude of the mean over "
            "datasets is cut off after three decimals, as in the paper. The best of several is above zero by chance "
            "alone: compare it with best_by_chance, and mind that its interval does not know that it was "
            f"picked.{left_out}"
        ),
        "table2_paper": "The paper's own Table 2, for comparison. The paper gives neither intervals nor tests.",
        "strategy_counts": (
            "How often a mitigation holds the best or the worst instance of a (model, dataset), or neither, over "
            f"{plural(int(counts['cells'].max()), 'cell')}, and what chance would give: {held}. p is the binomial "
            "test against chance."
        ),
        "heat_map": (
            f"Accuracy delta to the baseline, in points. A star marks what is resolved: {verdicts} at the level "
            f"{level:g} after Holm's correction. Gray is missing.{left_out}"
        ),
        "frontier": (
            f"Accuracy delta against the change of token speed, with {percent} intervals; the numbers are skip "
            f"ratios. {speeds}; {verdicts}. The dotted line joins what nothing else beats in both, by the estimates "
            "alone."
        ),
        "figure": (
            "Accuracy (mean over benchmarks), token speed (prompt and completion tokens per second of training) and "
            f"run time against the skip ratio. The dashed line is the baseline; bars are {percent} intervals of the "
            f"delta to it, paired per problem and seed, over {cover}, before correction for how many are compared. "
            f"{verdicts} after it." + (" With one seed no speed has an interval." if seeds == 1 else "")
        ),
        "deltas": (
            f"All deltas, absolute and relative, with {percent} intervals, p, p after Holm's correction over the "
            f"instances of a cell, and a verdict. {verdicts}. Intervals of the accuracy cover {cover}."
        ),
        "mcnemar": (
            "McNemar's exact test of each run against its baseline, per benchmark and over all problems: how many "
            "problems only one of the two solves. A check beside the deltas; it is not corrected for how many tests "
            "there are."
        ),
        "efficiency": f"Token speed, run time, sampling speed-up, accuracy delta of each instance. {speeds}. {gains}",
        "speed_up": (
            f"Sampling speed-up: generated tokens per second (median over steps) against the baseline's. {gains} "
            "Solid: N / (N - k); dashed: with the output projection, which is computed for every token whatever is "
            "skipped."
        ),
        "time_split": (
            "Where the time of a training run goes, by the number of layers skipped (mean over mitigations): "
            "sampling completions, scoring them, forward and backward pass, optimizer. Only the first becomes "
            "shorter when layers are skipped."
        ),
        "off_policy": (
            "How far the nested behavior policy mu is from the policy pi that is trained, as means over the steps: "
            "KL divergence, acceptance rate (1 - total variation), effective share of the samples. The star is the "
            "baseline, where nothing but rounding differs; bands are from the lowest to the highest of "
            f"{plural(seeds, 'seed')}."
        ),
        "reward": (
            f"Mean reward of the sampled completions over {config['training']['max_steps']} steps: thin each step, "
            f"thick the running mean, with a band from the lowest to the highest of {plural(seeds, 'seed')}. "
            "Instances are rewarded for what their nested behavior policy samples, which skips other layers at each "
            "step: their curves are rougher, and lower where the mask hurts."
        ),
        "stages": f"Accuracy after each stage, with {percent} intervals over problems: {stages}.",
        "config": f"{plural(len(tables['config']), 'key')} in which this study differs from the paper's values.",
        "provenance": f"What the {plural(provenance['runs'], 'run')} were made with.{left_out}",
    }
    return {name if name == "findings" else f"caption_{name}": text + "\n" for name, text in texts.items()}
