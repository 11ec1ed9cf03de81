"""The embedded default: two tiny language models, their tokenizer and generated word problems.

Nothing here is downloaded, so that the default study runs anywhere. The accuracies of these models
say nothing about the accuracies of the paper's models.
"""
