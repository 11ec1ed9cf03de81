"""Nested-ReFT: reinforced fine-tuning with roll-outs from a layer-skipped copy of the model itself."""
