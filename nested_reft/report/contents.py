"""What a report shows, in the order of its importance: section -> name of a table or a figure -> title.

The page of a report and Snakemake's report follow this order. `{dataset}` stands for each training set of a study.
"""

from collections.abc import Iterator

from nested_reft.config.layout import DATASET_FIGURE

SECTIONS: dict[str, dict[str, str]] = {
    "Findings": {
        "forest": "All accuracy deltas with their intervals",
        "heat_map": "Accuracy deltas of the whole grid",
        "trend": "What skipping layers does to the accuracy, over all runs",
        "table2": "Table 2: the best and the worst delta",
        "table2_paper": "Table 2 of the paper itself",
        "frontier": "Accuracy against speed",
        "benchmarks": "Accuracy on each benchmark",
        "strategy_counts": "Which mitigation holds the best and the worst instance",
    },
    "Speed": {
        "speed_up": "Sampling speed-up against its bounds",
        "speed": "Measured speed of sampling",
        "speed_slope": "Measured speed against the share of layers skipped",
        "time_split": "Where the time of a run goes",
        "accuracy_time": "Accuracy against the time of training",
        "efficiency": "Speed and accuracy of each instance",
    },
    "Training": {
        "layers": "What skipping each layer does to the reward",
        "reward": "Reward over the steps",
        "reward_cost": "Reward against time and sampled tokens",
        "off_policy": "How off-policy the samples were",
        "off_policy_steps": "Off-policyness and entropy over the steps",
        "token_weights": "The weights of the tokens under each mitigation",
        "sft_stages": "From the pretrained model to the trained one",
        "stages": "Accuracy after each stage",
        "answers": "Sampled answers before and after training",
    },
    "Details": {
        DATASET_FIGURE: "Accuracy, token speed and run time: {dataset}",
        "deltas": "All deltas",
        "mcnemar": "McNemar's exact tests",
        "noise": "Where the noise comes from",
    },
    "Setup and provenance": {
        "table1": "Table 1: layers skipped",
        "config": "Keys that differ from the paper's values",
        "provenance": "Code, versions and hardware",
    },
}


def contents(datasets: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (section, name, title) for every table and figure of a report.

    Args:
        datasets: the training sets of the study; some figures exist once for each.
    """
    for section, titles in SECTIONS.items():
        for name, title in titles.items():
            for dataset in datasets if "{dataset}" in name else datasets[:1]:
                yield section, name.format(dataset=dataset), title.format(dataset=dataset)
