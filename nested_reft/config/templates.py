"""The prompt templates, by name, and those that a user writes into a file. `data/prompts.py` fills them in."""

from nested_reft.config.local_path import local_path

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
PROBLEM = "{problem}"  # the place of the problem in a template; all other braces are text

# `qwen-math` is the template of the paper (the chat template of Qwen2.5-Math with the boxed instruction), `r1` is
# the template of R1-Zero-like training, and `none` is the problem alone.
TEMPLATES = {
    "qwen-math": (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "r1": (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
        "answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within "
        "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
        f"<answer> answer here </answer>.\nUser: {PROBLEM}\nAssistant: <think>"
    ),
    "none": PROBLEM,
}


def read_template(template: str) -> str:
    """Return what the settings of a stage hold: the name of a template, or the whole text of the user's own.

    The text and not the path of a file is part of the settings, so that a changed text reruns what depends on it.

    Args:
        template: a key of `TEMPLATES`, the path of a text file, or a text that holds `{problem}`.

    Raises:
        ValueError: the template is none of these; the message is the end of a sentence about it.
    """
    if template in TEMPLATES or PROBLEM in template:
        return template
    try:
        text = local_path(template).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"is the file {template}, which is not text in UTF-8; save it as UTF-8") from None
    except (OSError, ValueError):  # a null character
        raise ValueError(
            f"is {template!r:.200}, which is neither a template nor a file; choose one of {', '.join(TEMPLATES)}, or "
            f"give the path of a text file that holds {PROBLEM}"
        ) from None
    if PROBLEM not in text:
        raise ValueError(f"is the file {template}, which does not hold {PROBLEM}, the place of the problem; add it")
    return text
