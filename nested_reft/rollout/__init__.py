"""Sampling completions from the behavior policy, with the log-probabilities it gave their tokens."""
