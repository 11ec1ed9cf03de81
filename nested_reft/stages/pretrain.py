"""Makes the embedded models: tokenizer, random weights, and three phases of pretraining.

    nested-reft pretrain tiny-28 --out nested_reft/embedded/tiny-28
    nested-reft pretrain wide-20 --out nested_reft/embedded/wide-20

Reinforcement learning can only improve a model that is able to solve more problems than its samples show. An
under-trained model does not improve. A model improves if it first learns the arithmetic and is then trained on
solutions of which many end in a slip, as the corpus of a real model contains right and wrong solutions. Nested
roll-outs need a model that works without a few of its layers: large models do, but a model this small does only if it
is trained with layer dropout. Pretraining therefore has three phases: right solutions, right solutions with layer
dropout, and solutions with slips with layer dropout.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nested_reft.data.prompts import TEMPLATES, format_prompt
from nested_reft.embedded.problems import KINDS, Problem, generate, stream
from nested_reft.model.layers import nested
from nested_reft.nesting import draw_skipped_layers, valid_layers

TEMPLATE = "qwen-math"
EOS, PAD = "<|im_end|>", "<|endoftext|>"

# Words with their leading space, every digit on its own, runs of punctuation, white space.
PRETOKENS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nPlease reason step by step, and put your final answer within \\\\boxed{}.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

VOCAB_SIZE = 512
BATCH_SIZE = 64
# Fixed, because another number of threads adds in another order, which changes the last bits of the weights.
THREADS = 2


@dataclass(frozen=True)
class Shape:
    """How deep and how wide an embedded model is."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int


SHAPES = {
    # As deep as Qwen2.5-1.5B and 7B: 1, 3 and 4 layers at 5, 10 and 15 %.
    "tiny-28": Shape(num_hidden_layers=28, hidden_size=64, intermediate_size=240),
    # 1.5 times as wide, and shallow, but deep enough that the three ratios skip 1, 2 and 3 layers.
    "wide-20": Shape(num_hidden_layers=20, hidden_size=96, intermediate_size=288),
}


@dataclass(frozen=True)
class Phase:
    """One phase of pretraining.

    `slip_rates` maps each kind of problem to the share of its solutions whose last result is wrong. With
    `most_skipped`, the steps skip 0, 1, 2, ... layers in turn, up to that share, drawn anew for each step.
    """

    name: str
    steps: int
    learning_rate: float
    slip_rates: dict[str, float] | None
    most_skipped: float

    def most_layers(self, num_layers: int) -> int:
        """Return the largest number of layers that a step of this phase skips."""
        return int(self.most_skipped * num_layers)


PHASES = (
    Phase("mastery", steps=1500, learning_rate=2e-3, slip_rates=None, most_skipped=0),
    Phase("robustness", steps=500, learning_rate=1e-3, slip_rates=None, most_skipped=0.3),
    Phase(
        "slips",
        steps=200,
        learning_rate=5e-4,
        slip_rates={"one-step": 0.55, "multi-step": 0.65, "algebra": 0.7},
        most_skipped=0.22,
    ),
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with single digits: any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PRETOKENS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, "<|im_start|>", EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [f"{row.problem}\n{row.solution}" for row in generate("mixed", "train", 3000, seed=0)]
    instruction = TEMPLATES[TEMPLATE].format(problem="")
    tokenizer.train_from_iterator(corpus + [instruction] * 300, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return the randomly initialised model."""
    config = Qwen2Config(
        **asdict(shape),
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # The default of 0.02 suits widths of thousands; at width 64 it is too close to zero, and this gives 0.08.
        initializer_range=0.64 / math.sqrt(shape.hidden_size),
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def collate(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Return right-padded `input_ids`, `attention_mask` and `labels`, each (B, T); prompts carry no loss."""
    rows = []
    for row in problems:
        prompt = tokenizer(format_prompt(row.problem, TEMPLATE))["input_ids"]
        completion = tokenizer(row.solution + EOS)["input_ids"]
        rows.append((prompt, completion))
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    width = 8 * math.ceil(longest / 8)  # few distinct shapes, so that compiled layers are not compiled anew
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        input_ids[index, :length] = torch.tensor(prompt + completion)
        labels[index, len(prompt) : length] = torch.tensor(completion)
        attention_mask[index, :length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@torch.no_grad()
def measure(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, size: int, temperature: float = 0.0
) -> dict[str, float]:
    """Return kind -> share of `size` benchmark problems that the model answers exactly."""
    model.eval()
    torch.manual_seed(0)
    shares = {}
    for kind in KINDS:
        problems = generate(kind, "benchmark", size, seed=0)
        prompts = [format_prompt(row.problem, TEMPLATE) for row in problems]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        output = model.generate(**batch, max_new_tokens=40, **sampling)
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [f"\\boxed{{{row.answer}}}" in text for row, text in zip(problems, texts, strict=True)]
        shares[kind] = sum(right) / size
    return shares


def run_phase(
    phase: Phase,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Iterator[Problem],
    seed: int,
    history: list[dict[str, Any]],
) -> None:
    """Train on solution tokens with AdamW: a short warm-up, then a cosine to a tenth of the peak."""
    model.train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    num_layers = model.config.num_hidden_layers
    valid, most_layers = valid_layers(num_layers, border=1), phase.most_layers(num_layers)
    started = time.perf_counter()
    for step in range(phase.steps):
        warmup = min(1.0, (step + 1) / (0.05 * phase.steps))
        rate = phase.learning_rate * warmup * (0.55 + 0.45 * math.cos(math.pi * step / phase.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with nested(model, draw_skipped_layers(valid, step % (most_layers + 1), seed, step)):
            loss = model(**collate(list(islice(problems, BATCH_SIZE)), tokenizer)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            seconds = time.perf_counter() - started
            history.append({"phase": phase.name, "step": step + 1, "loss": round(loss.item(), 4)})
            print(f"{phase.name} {step + 1}/{phase.steps}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
    model.config.use_cache = True


def card(name: str, model: Qwen2ForCausalLM, accuracies: dict[str, dict[str, float]], seed: int) -> str:
    """Return the text of the model card."""
    num_layers = model.config.num_hidden_layers
    phases = "\n".join(
        f"| {phase.name} | {phase.steps} | {phase.learning_rate:g} | "
        + (", ".join(f"{kind} {rate:.0%}" for kind, rate in phase.slip_rates.items()) if phase.slip_rates else "none")
        + f" | {f'0 to {phase.most_layers(num_layers)}' if phase.most_skipped else 'none'} |"
        for phase in PHASES
    )
    measured = "\n".join(
        f"| {after} | " + " | ".join(f"{shares[kind]:.3f}" for kind in KINDS) + " |"
        for after, shares in accuracies.items()
    )
    return f"""---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
---

<!-- Generated by `nested-reft pretrain`. -->
# {name}

A Qwen2 model of {sum(p.numel() for p in model.parameters()):,} parameters with {num_layers} layers of width
{model.config.hidden_size}, made for the embedded studies of Nested-ReFT: deep enough that the paper's skip ratios mean
different numbers of layers, small enough for a CPU. It solves generated arithmetic word problems of three kinds, in
English, and nothing else. Its accuracies say nothing about other models.

It was pretrained with layer dropout: random layers were skipped in two of its three phases. Without layer dropout,
skipped layers would harm it much more.

## How it was made

    nested-reft pretrain {name} --out nested_reft/embedded/{name} --seed {seed}

AdamW, batches of {BATCH_SIZE}, loss on solutions only, {THREADS} threads. First to mastery on right solutions. Then
with random layers skipped (layer dropout), because a model this small, unlike large ones, breaks without one of its
layers otherwise. Last on solutions of which a share ends in a slip (the last result off by one or by ten), as a real
corpus holds wrong solutions too. Reinforcement can improve such a model, because it has learned the right solutions.

| phase | steps | learning rate | solutions with a slip | layers skipped |
| --- | --- | --- | --- | --- |
{phases}

![loss](loss.svg)

## What it scores

Share of 300 benchmark problems of each kind answered exactly. No benchmark problem is in its training data: a checksum
of the text decides the split.

| after | {" | ".join(KINDS)} |
| --- | {" | ".join("---" for _ in KINDS)} |
{measured}
"""


def draw_history(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss of each phase."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "nested-reft", "font.size": 8}):
        figure, axes = plt.subplots(1, len(PHASES), figsize=(7, 2.4), layout="constrained")
        for axis, phase in zip(axes, PHASES, strict=True):
            rows = [row for row in history if row["phase"] == phase.name]
            axis.plot([row["step"] for row in rows], [row["loss"] for row in rows])
            axis.set(title=phase.name, xlabel="step", ylabel="loss [nats/token]", yscale="log")
            axis.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None})


def make_model(name: str, out: Path, seed: int) -> None:
    """Pretrain the model of this name from random weights; write it, its tokenizer, loss curve and card to `out`."""
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    tokenizer = train_tokenizer()
    model = build_model(SHAPES[name], tokenizer)
    for layer in model.model.layers:
        layer.compile()  # a third faster on a CPU, while no layer is skipped
    history: list[dict[str, Any]] = []
    accuracies: dict[str, dict[str, float]] = {}
    for index, phase in enumerate(PHASES):
        problems = stream("mixed", "train", seed + index, phase.slip_rates)
        run_phase(phase, model, tokenizer, problems, seed + index, history)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        model = Qwen2ForCausalLM.from_pretrained(out)
        for way, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            accuracies[f"{phase.name}, {way}"] = measure(model, tokenizer, 300, temperature)
            print(phase.name, way, accuracies[f"{phase.name}, {way}"], flush=True)
    draw_history(history, out / "loss.svg")
    (out / "README.md").write_text(card(name, model, accuracies, seed))
