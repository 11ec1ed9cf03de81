"""Completions by vLLM (`sampler: vllm`), for training from a model without its skipped layers, and for evaluation.

vLLM cannot skip layers, but a model with k skipped layers is a model of N - k layers (`model/renumber.py`). For
training, an engine of that size is built once in this process, and each roll-out pushes the weights of the layers
that are left into it. Shapes stay the same, so that nothing is compiled again.

The prompts, the sampling distribution, the EOS tokens and the meaning of the log-probs are those of the other
samplers. These things differ:

- random numbers: each completion has a seed of its own, a function of (seed, step, row), so that a run can be
  repeated; but the completions differ from those of another sampler with the same seed;
- rounding: at temperature 0 completions can diverge where two tokens are almost equally likely. Compare models by
  records of the same sampler;
- limits: a prompt and its completion must fit into the positions of the model, and temperatures other than 0 are
  from 0.01 to 2.

vLLM is an extra, `pip install .[vllm]`. Nothing here has been run on a GPU yet: compare it with another sampler first.
"""

import importlib.util
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nested_reft.config.sections import Evaluation
from nested_reft.errors import NestingError, UserError
from nested_reft.model.layers import language_model
from nested_reft.model.loading import load_tokenizer
from nested_reft.model.renumber import check_equal_shapes, renumbered_weights, smaller_config
from nested_reft.rollout.engine import clone_in_dtype
from nested_reft.rollout.self_check import COMPARED_ROWS, NEW_TOKENS, wrong_logps_reason
from nested_reft.rollout.token_sampling import SamplingParams, row_seed

# The temperatures that vLLM takes as they are, next to 0.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
# vLLM gives each completion whole blocks of its KV cache. Its largest default block, on a CPU, has this many tokens.
KV_BLOCK = 128
# vLLM checks that this share of the memory of the GPU is free. How much it takes follows from the prompts.
LEAST_FREE = 0.05


def check_installed(key: str) -> None:
    """Check that vLLM is installed.

    Args:
        key: the key or option that asks for vLLM, for the message.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"{key} is 'vllm', which is not installed; `pip install .[vllm]`, or choose another sampler")


def import_vllm() -> ModuleType:
    """Import vLLM, which reads these variables.

    An engine that is dropped would destroy the process group of torch, which belongs to the training and to other
    engines of this process, so that vLLM's function for this is replaced.

    Raises:
        UserError: the import fails.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an engine in another process could not read the weights
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # vLLM would report its use to its developers
    try:
        with process_state_kept():
            import vllm
            from vllm.v1.engine import core
    except (ImportError, RuntimeError) as error:  # a RuntimeError if torchvision is made for another torch
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the sampler is 'vllm', which cannot be imported ({reason}); `pip install .[vllm]`, or choose another "
            "sampler"
        ) from None
    core.cleanup_dist_env_and_memory = lambda: None
    return vllm


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restore what vLLM changes for the whole process, which would change the training.

    vLLM seeds and uses the global random states, sets torch to one thread and replaces the function that changes
    this, and sets environment variables that other libraries read, also in child processes.
    """
    environment = dict(os.environ)
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    precision = torch.get_float32_matmul_precision()
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for name in {name for name in os.environ if not name.startswith("VLLM_")} - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


class VllmEngine:
    """An engine of vLLM in this process.

    Args:
        folder: the folder of the model; its tokenizer is not read.
        dtype: the name of the data type of the weights.
        prompt_ids: prompts of the first call, from which the length of sequences is taken.
        sampling: the sampling distribution.
        batch_size: the largest number of completions sampled at once, which bounds memory; None means all prompts.
        load_format: `safetensors`, or `dummy` for random weights, of which the folder has none.
        sleeps: whether the engine can give the memory of a GPU back between calls.

    Raises:
        UserError: vLLM cannot be imported, or sequences are longer than the model's positions.
        NestingError: vLLM cannot sample from the distribution, or cannot report its log-probs.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingParams,
        batch_size: int | None = None,
        load_format: str = "safetensors",
        sleeps: bool = False,
    ) -> None:
        logprobs_mode = logprobs_mode_for(sampling)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        rows = min(batch_size or len(prompt_ids), len(prompt_ids))
        blocks_per_row = -(-longest_sequence(prompt_ids, sampling) // KV_BLOCK)
        kv_tokens = (rows * blocks_per_row + 1) * KV_BLOCK  # vLLM keeps one block for itself
        self.max_length: int = min(config.max_position_embeddings, rows * blocks_per_row * KV_BLOCK)
        self.refuse_long_sequences(prompt_ids, sampling)
        self.vllm = import_vllm()
        has_gpu = torch.cuda.is_available()
        self.sleeps = sleeps and has_gpu
        is_rank = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        with process_state_kept():
            self.llm = self.vllm.LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                load_format=load_format,
                dtype=dtype,
                seed=0,
                trust_remote_code=False,
                generation_config="vllm",  # ignore the model's own settings: some models ship a repetition penalty
                logprobs_mode=logprobs_mode,
                max_num_seqs=rows,
                max_model_len=self.max_length,
                kv_cache_memory_bytes=kv_tokens * kv_bytes_per_token(config, dtype),
                gpu_memory_utilization=LEAST_FREE,
                enable_sleep_mode=self.sleeps,
                # Each rank has an engine of its own, which joins the ranks that are there.
                distributed_executor_backend="external_launcher" if is_rank else None,
                enforce_eager=not has_gpu,  # on a CPU, compiling takes more than a minute
            )

    def complete(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingParams, seed: int, step: int, rows: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt from the weights that the engine has.

        Args:
            prompt_ids: the prompts, of any lengths.
            sampling: the sampling distribution.
            seed: the seed of the run.
            step: the optimizer step.
            rows: the index of each prompt among all prompts, from which its random numbers are made.

        Returns:
            The completions, each up to and including its first EOS token, and log mu(a_t) of their tokens in nats.

        Raises:
            UserError: a sequence is too long.
        """
        self.refuse_long_sequences(prompt_ids, sampling)
        length = sampling.max_new_tokens
        params = [
            self.vllm.SamplingParams(
                n=1,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                min_p=0.0,
                max_tokens=length,
                min_tokens=length if sampling.fixed_length else 0,
                # By default vLLM stops at the config's EOS token, where the other samplers may continue.
                ignore_eos=True,
                stop_token_ids=list(sampling.eos_token_ids),
                logprobs=0,  # those of the sampled tokens alone
                detokenize=False,
                seed=row_seed(seed, step, row),
            )
            for row in rows
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompt_ids]
        with process_state_kept():
            outputs = [result.outputs[0] for result in self.llm.generate(requests, params, use_tqdm=False)]
        completions = [list(output.token_ids) for output in outputs]
        logps = [
            [by_token[token].logprob for by_token, token in zip(output.logprobs, output.token_ids, strict=True)]
            for output in outputs
        ]
        return completions, logps

    def refuse_long_sequences(self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingParams) -> None:
        """Raise a UserError if a prompt and its completion are longer than the engine's sequences."""
        if (longest := longest_sequence(prompt_ids, sampling)) > self.max_length:
            raise UserError(
                f"a prompt and its completion of {sampling.max_new_tokens} tokens have {longest} tokens, more than "
                f"the {self.max_length} that a sequence of sampler vllm can have; leave out long prompts, sample "
                "shorter completions, or choose another sampler"
            )


class NestedVllmEngine(VllmEngine):
    """An engine for all sets of k skipped layers of a model in this process.

    Args:
        model: the model, which may be wrapped and may have LoRA adapters.
        num_skipped: k.
        prompt_ids: the prompts of the first roll-out.
        sampling: the sampling distribution.
        dtype: the data type of the engine's weights; None takes that of the model.
        sleeps: whether the engine gives the memory of a GPU back between roll-outs. vLLM allows this for one engine
            of a process.

    Raises:
        NestingError: the model that is left depends on which layers are skipped.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        num_skipped: int,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingParams,
        dtype: torch.dtype | None = None,
        sleeps: bool = False,
    ) -> None:
        self.source, self.num_skipped = language_model(model), num_skipped
        self.dtype: torch.dtype = dtype or self.source.dtype
        config = smaller_config(self.source.config, num_skipped)
        if num_skipped:
            check_equal_shapes(self.source)
        config.architectures = [type(self.source).__name__]
        self.is_tied: bool = config.get_text_config().tie_word_embeddings
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            name = str(self.dtype).removeprefix("torch.")
            super().__init__(Path(folder), name, prompt_ids, sampling, load_format="dummy", sleeps=sleeps)

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingParams,
        seed: int,
        step: int,
        skipped: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample one completion for each prompt from the current weights without the skipped layers.

        Args:
            prompt_ids: the prompts, of any lengths.
            sampling: the sampling distribution.
            seed: the seed of the run.
            step: the optimizer step for which the skipped layers were drawn.
            skipped: the indices of the k skipped layers.
            rows: the index of each prompt among the prompts of all processes; None means 0, 1, 2, ...

        Returns:
            The completions, each up to and including its first EOS token, and log mu(a_t) of their tokens in nats.

        Raises:
            NestingError: vLLM could not forget what it had computed with earlier weights.
        """
        if self.sleeps:
            torch.cuda.empty_cache()
            self.llm.wake_up()
        self.push(skipped)
        sampled = self.complete(prompt_ids, sampling, seed, step, range(len(prompt_ids)) if rows is None else rows)
        if self.sleeps:
            self.llm.sleep(level=2)  # the weights need not be kept, since each roll-out pushes them
        return sampled

    @torch.no_grad()
    def push(self, skipped: Sequence[int]) -> None:
        """Replace the weights of the engine by those of the layers that are left.

        Raises:
            NestingError: vLLM keeps keys and values that it has computed with the earlier weights.
        """
        assert len(skipped) == self.num_skipped
        weights = ((name, weight.to(self.dtype)) for name, weight in renumbered_weights(self.source, skipped))
        with process_state_kept():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if self.is_tied:
                self.llm.apply_model(repack_output_head)
            # Of a prompt that it has seen, vLLM would use the keys and values again.
            if not self.llm.reset_prefix_cache():
                raise NestingError(
                    "vLLM did not forget the keys and values of earlier weights, so that the log-probabilities of the "
                    "behavior policy would be wrong; start the job again, or set the sampler to engine"
                )


def repack_output_head(model: Any) -> None:
    """Renew the packed copy that a tied output head of vLLM has on a CPU, and which a reload of weights leaves out."""
    head = getattr(model, "lm_head", None)  # without one, a model of vLLM uses the embedding itself
    if head is not None and head.weight.device.type == "cpu":
        head.quant_method.process_weights_after_loading(head)


@torch.no_grad()
def refuse_wrong_logps(engine: NestedVllmEngine, prompt_ids: Sequence[Sequence[int]], skipped: Sequence[int]) -> None:
    """Compare log-probs of the engine with those of forwards of the model without the skipped layers.

    The engine first samples from the random weights that it was made with. Whatever it kept of these weights, or of
    the keys and values that it has computed with them, would be seen.

    Raises:
        NestingError: the log-probs are not those of the model.
    """
    prompts = prompt_ids[:COMPARED_ROWS]
    short = SamplingParams(NEW_TOKENS)
    engine.complete(prompts, short, seed=0, step=0, rows=range(len(prompts)))
    completions, logps = engine.sample(prompts, short, seed=1, step=0, skipped=skipped)
    model: PreTrainedModel = engine.source
    if model.dtype != engine.dtype:
        model = clone_in_dtype(model, engine.dtype)
        torch._foreach_copy_(list(model.parameters()), list(engine.source.parameters()))
    if reason := wrong_logps_reason(model, skipped, prompts, completions, logps):
        raise NestingError(f"sampler vllm cannot be used: {reason}; set the sampler to engine")


def logprobs_mode_for(sampling: SamplingParams) -> str:
    """Return which log-probs vLLM has to report: those of softmax(logits / temperature), before any ban.

    Its raw log-probs are those of softmax(logits), and its processed ones are taken after the temperature and after
    the ban on the EOS tokens.

    Raises:
        NestingError: neither are those of the distribution, or vLLM would change the temperature.
    """
    temperature = sampling.temperature
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise NestingError(
            f"temperature is {temperature}, but sampler vllm takes temperatures from {LOWEST_TEMPERATURE} to "
            f"{HIGHEST_TEMPERATURE}; change it, or set the sampler to engine"
        )
    if temperature in (0, 1):
        return "raw_logprobs"
    if sampling.fixed_length:
        raise NestingError(
            f"temperature is {temperature} with a fixed length, where sampler vllm reports log-probabilities only "
            "after its ban on the EOS tokens; set temperature to 1, let completions end, or set the sampler to engine"
        )
    return "processed_logprobs"


def longest_sequence(prompt_ids: Sequence[Sequence[int]], sampling: SamplingParams) -> int:
    """Return the tokens of the longest prompt and a completion of the largest length."""
    return max(map(len, prompt_ids)) + sampling.max_new_tokens


def kv_bytes_per_token(config: PretrainedConfig, dtype: str) -> int:
    """Return the bytes of the keys and values of one token in all layers."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    item_size: int = getattr(torch, dtype).itemsize
    return 2 * config.num_hidden_layers * num_heads * head_size * item_size


def open_vllm(
    model_path: str, prompts: list[str], settings: Evaluation
) -> tuple[PreTrainedTokenizerBase, Callable[[range], list[list[int]]]]:
    """Return the tokenizer, and a function that samples the completions of a range of the prompts, EOS included.

    Args:
        model_path: the folder of the model and its tokenizer.
        prompts: the formatted prompts; a prompt that occurs n times gets n completions.
        settings: the settings of the evaluation.

    Raises:
        UserError: vLLM is not installed or cannot sample as configured, or the model has no tokenizer that fits it.
    """
    check_installed("evaluation.sampler")
    tokenizer = load_tokenizer(Path(model_path))
    prompt_ids = tokenizer(prompts)["input_ids"]
    sampling = SamplingParams(
        settings.max_new_tokens,
        settings.temperature,
        settings.top_p if settings.temperature > 0 else 1.0,
        eos_token_ids=read_end_token_ids(model_path, tokenizer),
    )
    try:
        engine = VllmEngine(Path(model_path), settings.dtype, prompt_ids, sampling, settings.batch_size)
    except NestingError as error:
        raise UserError(f"the evaluation cannot be sampled: {error}") from None

    def complete(rows: range) -> list[list[int]]:
        return engine.complete([prompt_ids[row] for row in rows], sampling, settings.seed, 0, rows)[0]

    return tokenizer, complete


def read_end_token_ids(model_path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what `model.loading.end_token_ids` returns, without the weights of the model."""
    try:
        settings = GenerationConfig.from_pretrained(model_path)
    except OSError:  # there is no generation_config.json
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
        settings = GenerationConfig.from_model_config(config)
    ends = tokenizer.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
    return tuple(ends) if isinstance(ends, list) else (ends,)
