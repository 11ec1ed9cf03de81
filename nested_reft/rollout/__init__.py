"""Roll-outs: sampling completions from the behavior policy, with the log-probabilities of their tokens."""
