"""Completions by vLLM, for evaluations that are too large for the other samplers (`evaluation.sampler: vllm`).

vLLM is an extra, `pip install .[vllm]`, and wants a GPU that it supports. The prompts, the sampling
distribution, the end tokens and the way tokens become text are those of the other samplers, and so is what
is recorded. What differs:

- the random numbers: each completion has a seed of its own, so that a run can be repeated, but at a
  temperature above 0 the same seed gives other completions than another sampler does;
- rounding: at temperature 0 completions can part where two tokens are almost equally likely. Compare models
  by records of one sampler;
- what is refused: vLLM rejects a longest prompt and `max_new_tokens` that together exceed the positions of the
  model, and temperatures above 2; it raises those below 0.01 to 0.01.

vLLM takes most of the GPU's memory for itself, whatever `batch_size`, which bounds how many completions are
under way at once. It has not been run on a GPU from here yet: measure it against another sampler first.
"""

import sys

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from nested_reft.config.sections import Evaluation
from nested_reft.errors import UserError


def complete(model_path: str, prompts: list[str], settings: Evaluation) -> tuple[list[str], list[int]]:
    """Return one completion per prompt and its length in tokens, its end token included, in the prompts' order.

    Args:
        model_path: the folder of the model and its tokenizer.
        prompts: as formatted; a problem with several samples comes several times.
        settings: of the sampling. The seed of a completion is a function of `seed` and of its place among the
            prompts.

    Raises:
        UserError: if vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
    except ModuleNotFoundError as error:
        raise UserError(
            f"evaluation.sampler is 'vllm', which cannot be imported ({error}); `pip install .[vllm]`, or choose "
            "another sampler"
        ) from None

    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
    prompt_ids = tokenizer(prompts)["input_ids"]
    llm = LLM(
        model=model_path,
        dtype=settings.dtype,
        seed=settings.seed,
        trust_remote_code=False,
        generation_config="vllm",  # nothing of a model's own settings: some ship a repetition penalty
        max_num_seqs=settings.batch_size,
        max_model_len=max(map(len, prompt_ids)) + settings.max_new_tokens,
    )
    ends = end_tokens(model_path)
    sampling = [
        SamplingParams(
            n=1,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            max_tokens=settings.max_new_tokens,
            # All differ, among the completions of a run and from those of a run with another seed.
            seed=settings.seed * len(prompts) + index,
            # vLLM would also stop at the tokenizer's end token, where the other samplers go on.
            ignore_eos=True,
            stop_token_ids=ends,
            detokenize=False,  # done below: vLLM's own text can differ in its spaces
        )
        for index in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], sampling, use_tqdm=sys.stderr.isatty())
    completions = [list(output.outputs[0].token_ids) for output in outputs]
    return tokenizer.batch_decode(completions, skip_special_tokens=True), [len(tokens) for tokens in completions]


def end_tokens(model_path: str) -> list[int]:
    """Return the tokens that end a completion, as transformers finds them when it loads the model."""
    try:
        settings = GenerationConfig.from_pretrained(model_path)
    except OSError:  # there is no generation_config.json
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
        settings = GenerationConfig.from_model_config(config)
    ends = settings.eos_token_id
    return ends if isinstance(ends, list) else [ends]
