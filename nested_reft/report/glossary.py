"""The words that a reader of a report may have to look up. The page links each of them to its explanation."""

# How each mitigation weights the gradient of a token that a nested model sampled, for the legend of the answer.
WEIGHTS = {
    "base": "by the importance ratio, within the clipped loss",
    "practical": "not at all",
    "retrace": "by the importance ratio, cut off at 1",
    "is": "by the importance ratio",
    "tis": "by the importance ratio, cut off at a cap",
    "icepop": "by the importance ratio, and by 0 where it is outside of two bounds",
    "sequence_mask": "by the importance ratio, and by 0 in sequences whose ratio is above a cap",
    "geometric_mask": "by the importance ratio, and by 0 in sequences whose mean ratio is outside of two bounds",
    "trace": "by the product of the ratios up to the token, each cut off at 1",
    "topr": "by the ratio of its sequence, cut off at 1, where the advantage is negative",
    "opsm": "by 0 in far off-policy sequences with a negative advantage",
}

GLOSSARY = {
    "cell": "One (model, training set). All comparisons are made within a cell.",
    "baseline": "The training of a cell that skips no layers: stock GRPO. Every instance is compared with it.",
    "instance": "One (skip ratio, mitigation) within a cell, over all its seeds.",
    "skip ratio": "The share of all layers that is skipped while the completions of a training step are sampled.",
    "mitigation": "How the gradient of a token is weighted because a nested model, and not the trained model, sampled "
    "it: base, practical, retrace, is or tis.",
    "base": "A mitigation: the importance ratio within the clipped loss. The baseline is something else: it skips no "
    "layers.",
    "practical": "A mitigation: no correction, as if the trained model had sampled the completions.",
    "retrace": "A mitigation: the importance ratio of a token, cut off at 1, weights its gradient.",
    "delta": "The metric of an instance minus that of its baseline. A relative delta is divided by the baseline's "
    "metric.",
    "points": "Percentage points: the unit of a delta of accuracies in percent. From 90% to 85% are -5 points.",
    "verdict": "What a delta of the accuracy says: equivalent, better, worse or inconclusive; missing without runs, "
    "and waiting until the study is finished.",
    "better": "A verdict: the instance has the higher accuracy, or is faster, and p after Holm's correction is below "
    "1 - confidence, which is 0.05 by default. The interval of a delta is not corrected, so it may miss zero although "
    "the verdict is inconclusive.",
    "worse": "A verdict: the same as better, where the instance has the lower accuracy, or is slower.",
    "equivalent": "A verdict: the delta is smaller than the margin, up or down, by two one-sided tests. It may differ "
    "from zero, but by less than what matters.",
    "inconclusive": "A verdict: too little data to call the delta equivalent, better or worse. Zero and a change of "
    "the size of the margin are both possible.",
    "waiting": "A verdict: the study is not finished. All verdicts are given once, with the last planned run, because "
    "a study that is judged at every look finds a difference sooner or later, also where there is none.",
    "margin": "The smallest change of the accuracy that matters, 1 point by default (analysis.margin).",
    "trend": "The slope of the accuracy on the share of layers skipped, over all runs at once.",
    "Holm's correction": "A correction of p for the number of tests, here for the instances of a cell. Without it, "
    "one of 20 deltas would seem to differ from zero by chance alone.",
    "KL": "Kullback-Leibler divergence, in nats per token: how far the model that sampled is from the model that is "
    "trained. It is 0 if they are the same.",
    "acceptance rate": "The mean of min(1, importance ratio) over the sampled tokens. It is 1 if the model that "
    "sampled and the model that is trained are the same.",
    "effective sample size": "The share of the sampled tokens that would carry as much information if all had the "
    "same weight.",
    "off-policy": "A sample is off-policy if it was not drawn from the model that is trained. A nested model, with "
    "some layers skipped, draws such samples.",
    "token speed": "All tokens of a training, prompts included, per second of its optimizer steps.",
    "by chance": "What the best (or worst) of several instances would show on average if none differed from the "
    "baseline.",
    "layer dropout": "Pretraining in which random layers are skipped. It makes a model robust to skipped layers.",
    "McNemar's exact test": "A test of two models on the same problems, from the numbers of problems that only one of "
    "them solves.",
}
