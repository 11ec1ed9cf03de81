"""Paths on this machine that a user has written."""

from pathlib import Path


def local_path(text: str | Path) -> Path:
    """Return the path that a user means; `~` stands for a home directory, but not for that of an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
