"""The configuration of a study: its keys, the grid it expands to, and the paths of what it produces."""
