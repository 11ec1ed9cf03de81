"""Transformers models as nesting sees them: the stack of decoder layers, its checks, and loading."""
