"""Prompt templates, by name: the same string is built for SFT, for training and for evaluation.

They are plain strings and not chat messages, so that what a model sees does not depend on the chat
template that its tokenizer happens to ship.
"""

from nested_reft.config.templates import TEMPLATES


def format_prompt(problem: str, template: str) -> str:
    """Return the prompt string for `problem` under the template of that name."""
    return TEMPLATES[template].format(problem=problem)
