"""Prompt templates, by name: the same string is built for SFT, for training and for evaluation.

They are plain strings and not chat messages, so that what a model sees does not depend on the chat
template that its tokenizer happens to ship.
"""

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# `qwen-math` is the template of the paper (the Qwen2.5-Math chat template with the boxed
# instruction), `r1` the one of R1-Zero-like training, `none` the bare problem.
TEMPLATES = {
    "qwen-math": (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
        "<|im_start|>user\n{problem}<|im_end|>\n"
        "<|im_start|>assistant\n"
    ).replace("\\boxed{}", "\\boxed{{}}"),
    "r1": (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
        "answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within "
        "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
        "<answer> answer here </answer>.\nUser: {problem}\nAssistant: <think>"
    ),
    "none": "{problem}",
}


def format_prompt(problem: str, template: str) -> str:
    """Return the prompt string for `problem` under the template of that name."""
    return TEMPLATES[template].format(problem=problem)
