"""Makes the embedded model: tokenizer, random weights, pretraining to mastery, then on slips.

    nested-reft pretrain --out nested_reft/embedded/tiny-28

Reinforcement needs a model that can do better than it does. An under-trained model does not improve;
a model that knows its arithmetic and was then shown solutions of which many end in a slip does, like
a real pretrained model whose corpus holds right and wrong solutions. Hence two phases.
"""

import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nested_reft.embedded.problems import KINDS, Problem, generate, stream
from nested_reft.prompts import TEMPLATES, format_prompt

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


def build_model(tokenizer: PreTrainedTokenizerFast, num_hidden_layers: int, hidden_size: int) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 model of the given shape."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 15 // 4,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 16,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # The default of 0.02 suits widths of thousands; at 64 it starts too close to zero.
        initializer_range=0.08,
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
    model.train()
    return shares


def run_phase(
    name: str,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Iterator[Problem],
    steps: int,
    batch_size: int,
    learning_rate: float,
    history: list[dict],
) -> None:
    """Train on solution tokens with AdamW: a short warm-up, then a cosine to a tenth of the peak."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.perf_counter()
    for step in range(steps):
        warmup = min(1.0, (step + 1) / (0.05 * steps))
        rate = learning_rate * warmup * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**collate(list(islice(problems, batch_size)), tokenizer)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            seconds = time.perf_counter() - started
            history.append({"phase": name, "step": step + 1, "loss": round(loss.item(), 4)})
            print(f"{name} {step + 1}/{steps}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
