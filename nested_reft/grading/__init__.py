"""Grading: the answer of a completion is extracted, compared with the expected answer, and rewarded."""
