"""Measurements of speed that users and reviewers can repeat."""
