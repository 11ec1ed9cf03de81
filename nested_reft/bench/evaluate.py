"""The speed of evaluation: generated problems, answered by greedy decoding until EOS."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from nested_reft.bench.harness import environment_info, quartiles, run_interleaved, seconds, summarize
from nested_reft.bench.rollout import MODEL_SHAPES, bench_device, load
from nested_reft.config.sections import Evaluation
from nested_reft.data.prompts import format_prompt
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.model.loading import end_token_ids
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.generate import complete_by_generate
from nested_reft.rollout.self_check import unsupported_reason
from nested_reft.rollout.token_sampling import SamplingParams


@dataclass(frozen=True)
class EvalBenchSettings:
    """The settings of `bench eval`; lengths in tokens."""

    model: str  # a folder or embedded/<name>
    problems: int = 200
    batch_size: int = 100
    new_tokens: int = 64  # the longest completion
    dtype: str = "float32"
    rounds: int = 20


def measure_eval(settings: EvalBenchSettings) -> dict[str, Any]:
    """Measure the problems per second of each sampler.

    Raises:
        UserError: if the model has random weights, or if the engine does not support it.
    """
    if settings.model in MODEL_SHAPES:
        raise UserError(
            f"model {settings.model!r} has random weights, so its completions do not end; give a trained model"
        )
    device = bench_device()
    model, tokenizer = load(settings.model, settings.dtype, device)
    sampling = SamplingParams(settings.new_tokens, temperature=0.0, eos_token_ids=end_token_ids(model, tokenizer))
    evaluation = Evaluation(max_new_tokens=settings.new_tokens, batch_size=settings.batch_size)

    def prompts(index: int) -> list[list[int]]:
        problems = generate("mixed", "benchmark", settings.problems, seed=index)
        return tokenizer([format_prompt(problem.problem, "qwen-math") for problem in problems])["input_ids"]

    prompts_of_round = [prompts(index) for index in range(settings.rounds + 1)]

    def by_generate(index: int) -> list[list[int]]:
        return complete_by_generate(model, tokenizer, prompts_of_round[index], evaluation, lambda completions: None)

    def by_engine(engine: RolloutEngine, index: int) -> list[list[int]]:
        return engine.sample(prompts_of_round[index], sampling, seed=0, batch_size=settings.batch_size)[0]

    calls: dict[str, Callable[[int], list[list[int]]]] = {"generate": by_generate}
    for name in ("engine", "engine-compiled"):
        engine = RolloutEngine(model, name == "engine-compiled")
        if reason := unsupported_reason(engine, prompts_of_round[0], sampling, settings.batch_size):
            raise UserError(f"the engine cannot be measured: {reason}")
        calls[name] = partial(by_engine, engine)

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), device)

    measured = run_interleaved({name: partial(measure, name) for name in calls}, settings.rounds)
    results = {"bench": "eval", "settings": asdict(settings), **environment_info(device)}
    results["evaluation"] = summarize(*measured, "generate")
    results["problems_per_second"] = {
        name: quartiles(settings.problems / np.array(values)) for name, values in measured[1].items()
    }
    return results
