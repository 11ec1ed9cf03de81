"""Training sets and benchmarks: where they come from, their native formats, decontamination, prompts."""
