"""The embedded default: a tiny language model, its tokenizer and generated word problems.

Nothing here is downloaded, so that the default study runs anywhere. The accuracies of this model
say nothing about the accuracies of the paper's models.
"""
