"""Answers of completions: extracted, compared with the expected answer, and rewarded."""
