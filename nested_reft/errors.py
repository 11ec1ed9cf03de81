"""Errors that a user can fix: each message is one sentence, and the command line exits with code 2."""


class UserError(Exception):
    """A user's mistake. The message names the key or file, the value and the remedy, in one sentence."""


class NestingError(ValueError):
    """The model or a setting would make nested roll-outs silently wrong. The message says why, in one sentence."""
