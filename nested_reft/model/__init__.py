"""Transformers models: their stack of decoder layers, the checks before nesting, and loading."""
