"""Loading a model and its tokenizer."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nested_reft.errors import UserError
from nested_reft.model.weights import count_parameters

# A text that any tokenizer must be able to encode.
PROBE = "What is 1 + 2?"


def load_model(path: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer, from safetensors only and without running code from the hub.

    Raises:
        UserError: the folder lacks the weights or a tokenizer that fits the model.
    """
    count_parameters(path)  # refuses files that are missing, incomplete or no weights
    tokenizer = load_tokenizer(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    return model, tokenizer


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    A folder without the files of a tokenizer would give an empty one, with which a model trains on empty sequences.

    Raises:
        UserError: the folder has no tokenizer, or the tokenizer has no EOS token or more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the types of these errors differ from tokenizer to tokenizer
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the tokenizer of model {path} cannot be read ({reason}); copy the files of the base model's tokenizer, "
            "such as tokenizer.json and tokenizer_config.json, into the folder"
        ) from error
    tokens = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if not set(tokens) - {tokenizer.unk_token_id}:
        raise UserError(
            f"model {path} has no tokenizer that can encode text; copy the files of its base model's tokenizer, such "
            "as tokenizer.json and tokenizer_config.json, into the folder"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of model {path} names no token that ends a text; set `eos_token` in tokenizer_config.json"
        )
    config = json.loads((path / "config.json").read_text())
    num_tokens = (config.get("text_config") or config)["vocab_size"]
    if max(*tokens, tokenizer.eos_token_id) >= num_tokens:
        raise UserError(
            f"the tokenizer of model {path} has {len(tokenizer)} tokens, but the model knows {num_tokens}; copy the "
            "files of its base model's tokenizer into the folder"
        )
    if tokenizer.pad_token_id is None:  # as TRL does
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a completion: the model's or, if its generation config has none, the tokenizer's."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return tuple(ends) if isinstance(ends, list) else (ends,)
