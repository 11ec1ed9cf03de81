"""The configuration of a study: its keys, the grid that it expands to, and the paths of its products."""
