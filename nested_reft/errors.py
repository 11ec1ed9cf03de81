"""Mistakes that end with one sentence for the user and exit code 2."""


class UserError(Exception):
    """A user's mistake, told in one sentence that names the key or file, the value and the remedy."""


class NestingError(ValueError):
    """Roll-outs from this nested model would be silently wrong; says why, in one sentence."""
