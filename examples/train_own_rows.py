"""Train a model on rows of your own with nested roll-outs: `python examples/train_own_rows.py`.

The script is an ordinary TRL script: prompts in the chat format, one more column that the reward function reads, and
`--lora` for a LoRA adapter. The embedded model of 1.7 million parameters is trained on a CPU in about a minute.
"""

import argparse
from importlib.resources import files
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig

from nested_reft import NestedGRPOTrainer

ROWS = [
    {
        "prompt": [
            {"role": "user", "content": f"Tom has {have} pens and gets {more} more. How many pens does Tom have now?"}
        ],
        "answer": str(have + more),
    }
    for have in range(12, 60, 7)
    for more in range(15, 95, 11)
]


def boxed_answer(completions: list[list[dict[str, str]]], answer: list[str], **kwargs: Any) -> list[float]:
    """Return 1 for a completion with the answer in a box. A completion is a list of messages, here of one message."""
    texts = [messages[0]["content"] for messages in completions]
    return [float(f"\\boxed{{{expected}}}" in text) for text, expected in zip(texts, answer, strict=True)]


class PrintProgress(TrainerCallback):
    """Print the mean reward, and how far the nested model is from the model that is trained."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Print one line for each log of TRL."""
        if "sampling/kl" in logs:
            print(
                f"step {state.global_step:3d}: reward {logs['reward']:.3f}, KL {logs['sampling/kl']:.4f} nats a token"
            )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=str(files("nested_reft.embedded") / "tiny-28"))
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--skip-ratio", type=float, default=0.1)
parser.add_argument("--lora", action="store_true", help="train a LoRA adapter instead of all weights")
parser.add_argument("--out", default="results/own-rows", help="folder of the trained model")
options = parser.parse_args()

adapter = None
if options.lora:
    from peft import LoraConfig

    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")

trainer = NestedGRPOTrainer(
    model=options.model,
    reward_funcs=boxed_answer,
    args=GRPOConfig(
        output_dir=options.out,
        max_steps=options.steps,
        learning_rate=1e-3 if options.lora else 2e-4,
        per_device_train_batch_size=64,  # 8 prompts with 8 completions each
        num_generations=8,
        max_completion_length=40,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_list(ROWS),
    peft_config=adapter,
    callbacks=[PrintProgress()],
    skip_ratio=options.skip_ratio,  # each batch of completions is sampled without 10% of the layers
    mitigation="retrace",  # the gradient of each token is weighted by min(1, pi / mu)
    sampler="engine",  # faster than transformers' generate; the same distribution
)
trainer.remove_callback(PrinterCallback)
trainer.train()
trainer.save_model()
