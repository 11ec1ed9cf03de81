"""The prompt templates, by name. The config accepts these names; `data/prompts.py` fills the templates in."""

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# `qwen-math` is the template of the paper (the chat template of Qwen2.5-Math with the boxed instruction), `r1` is
# the template of R1-Zero-like training, and `none` is the problem alone.
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
