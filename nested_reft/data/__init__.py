"""Training sets and benchmarks: sources, formats, decontamination, prompts."""
