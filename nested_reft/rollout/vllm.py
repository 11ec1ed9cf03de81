"""Completions by vLLM, for evaluations that are too large for the other samplers (`evaluation.sampler: vllm`).

vLLM is an extra, `pip install .[vllm]`, and needs a GPU that it supports. The prompts, the sampling distribution, the
EOS tokens, the way tokens become text, and the records of an evaluation are the same as with the other samplers.
These things differ:

- random numbers: each completion has its own seed, so a run can be repeated; but at a temperature above 0 the
  completions differ from those of another sampler with the same seed;
- rounding: at temperature 0 completions can diverge where two tokens are almost equally likely. Compare models by
  records of the same sampler;
- limits: vLLM rejects a longest prompt and `max_new_tokens` that together exceed the positions of the model, and
  temperatures above 2. It raises temperatures below 0.01 to 0.01.

vLLM reserves most of the GPU's memory for itself, whatever `batch_size` is, which bounds how many completions are
sampled at once. This module has not been run on a GPU yet: compare it with another sampler first.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from nested_reft.config.sections import Evaluation
from nested_reft.errors import UserError
from nested_reft.model.loading import load_tokenizer


def open_vllm(
    model_path: str, prompts: list[str], settings: Evaluation
) -> tuple[PreTrainedTokenizerBase, Callable[[range], list[list[int]]]]:
    """Return the tokenizer, and a function that samples the completions of a range of the prompts, EOS included.

    Args:
        model_path: the folder of the model and its tokenizer.
        prompts: the formatted prompts; a prompt that occurs n times gets n completions.
        settings: the settings of the evaluation. The seed of a completion is a function of `settings.seed` and of the
            index of its prompt.

    Raises:
        UserError: if vLLM is not installed, or if the model has no tokenizer that fits it.
    """
    try:
        from vllm import LLM, SamplingParams
    except ModuleNotFoundError as error:
        raise UserError(
            f"evaluation.sampler is 'vllm', which cannot be imported ({error}); `pip install .[vllm]`, or choose "
            "another sampler"
        ) from None

    tokenizer = load_tokenizer(Path(model_path))
    prompt_ids = tokenizer(prompts)["input_ids"]
    llm = LLM(
        model=model_path,
        dtype=settings.dtype,
        seed=settings.seed,
        trust_remote_code=False,
        generation_config="vllm",  # ignore the model's own settings: some models ship a repetition penalty
        max_num_seqs=settings.batch_size,
        max_model_len=max(map(len, prompt_ids)) + settings.max_new_tokens,
    )
    eos_token_ids = read_eos_token_ids(model_path)

    def sampling(index: int) -> SamplingParams:
        return SamplingParams(
            n=1,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            max_tokens=settings.max_new_tokens,
            # No two completions of a run share a seed, nor do those of two runs of equal size with different seeds.
            seed=settings.seed * len(prompts) + index,
            # By default vLLM stops at the tokenizer's EOS token too, where the other samplers continue.
            ignore_eos=True,
            stop_token_ids=eos_token_ids,
            detokenize=False,  # done by the caller, because vLLM's own text can differ in its spaces
        )

    def complete(rows: range) -> list[list[int]]:
        requests = [{"prompt_token_ids": prompt_ids[row]} for row in rows]
        outputs = llm.generate(requests, [sampling(row) for row in rows], use_tqdm=sys.stderr.isatty())
        return [list(output.outputs[0].token_ids) for output in outputs]

    return tokenizer, complete


def read_eos_token_ids(model_path: str) -> list[int]:
    """Return the EOS tokens that transformers would use for the model, without loading its weights."""
    try:
        settings = GenerationConfig.from_pretrained(model_path)
    except OSError:  # there is no generation_config.json
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
        settings = GenerationConfig.from_model_config(config)
    ends = settings.eos_token_id
    return ends if isinstance(ends, list) else [ends]
