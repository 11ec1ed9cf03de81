"""The embedded default: two tiny language models, their tokenizer and generated word problems.

Nothing here is downloaded, so that the default study runs anywhere. The accuracies of these models
say nothing about the accuracies of the paper's models.
"""

# The models that were pretrained with random layers skipped (layer dropout). They are unusually robust to skipped
# layers, so reports add a caution wherever they show results of these models.
PRETRAINED_WITH_LAYER_DROPOUT = ("tiny-28", "wide-20")
