"""Prompts: SFT, training and evaluation build the same string for a problem.

Prompts are plain strings and not chat messages, so that they do not depend on the chat template of a tokenizer.
"""

from nested_reft.config.templates import TEMPLATES


def format_prompt(problem: str, template: str) -> str:
    """Return the prompt for a problem in the template of this name."""
    return TEMPLATES[template].format(problem=problem)
