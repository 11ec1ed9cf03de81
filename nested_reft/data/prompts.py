"""Prompts: SFT, training and evaluation build the same string for a problem.

Prompts are plain strings and not chat messages, so that they do not depend on the chat template of a tokenizer.
"""

from nested_reft.config.templates import PROBLEM, TEMPLATES


def format_prompt(problem: str, template: str) -> str:
    """Return the prompt for a problem.

    Args:
        problem: the problem.
        template: the name of a template, or the text of one.
    """
    return TEMPLATES.get(template, template).replace(PROBLEM, problem)
