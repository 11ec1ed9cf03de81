"""The speed of evaluation: generated problems, answered greedily until they end by themselves."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from nested_reft.bench.harness import environment_info, quartiles, run_interleaved, seconds, summarize
from nested_reft.bench.rollout import SHAPES, bench_device, load
from nested_reft.config.sections import Evaluation
from nested_reft.data.prompts import format_prompt
from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.model.loading import end_token_ids
from nested_reft.rollout.engine import RolloutEngine
from nested_reft.rollout.generate import complete_by_generate
from nested_reft.rollout.sampling import SamplingParams
from nested_reft.rollout.self_check import unsupported_reason


@dataclass(frozen=True)
class Settings:
    """What is measured; lengths in tokens."""

    model: str  # a folder or embedded/<name>
    problems: int = 200
    batch_size: int = 100
    new_tokens: int = 64  # at most
    dtype: str = "float32"
    pairs: int = 20


def measure_eval(settings: Settings) -> dict[str, Any]:
    """Measure all that `bench eval` tells of a model.

    Raises:
        UserError: for a model that cannot be measured.
    """
    if settings.model in SHAPES:
        raise UserError(f"model {settings.model!r} has random weights and ends no answer; give a trained model")
    device = bench_device()
    model, tokenizer = load(settings.model, settings.dtype, device)
    sampling = SamplingParams(settings.new_tokens, temperature=0.0, eos_token_ids=end_token_ids(model, tokenizer))
    evaluation = Evaluation(max_new_tokens=settings.new_tokens, batch_size=settings.batch_size)

    def prompts(index: int) -> list[list[int]]:
        problems = generate("mixed", "benchmark", settings.problems, seed=index)
        return tokenizer([format_prompt(problem.problem, "qwen-math") for problem in problems])["input_ids"]

    given = [prompts(index) for index in range(settings.pairs + 1)]

    def by_generate(index: int) -> list[list[int]]:
        return complete_by_generate(model, tokenizer, given[index], evaluation, lambda completions: None)

    def by_engine(engine: RolloutEngine, index: int) -> list[list[int]]:
        return engine.sample(given[index], sampling, seed=0, batch_size=settings.batch_size)[0]

    calls: dict[str, Callable[[int], list[list[int]]]] = {"generate": by_generate}
    for name in ("engine", "engine-compiled"):
        engine = RolloutEngine(model, name == "engine-compiled")
        if reason := unsupported_reason(engine, given[0], sampling, settings.batch_size):
            raise UserError(f"the engine cannot be measured: {reason}")
        calls[name] = partial(by_engine, engine)

    def measure(name: str, index: int) -> float:
        return seconds(partial(calls[name], index), device)

    measured = run_interleaved({name: partial(measure, name) for name in calls}, settings.pairs)
    results = {"bench": "eval", "settings": asdict(settings), **environment_info(device)}
    results["evaluation"] = summarize(*measured, "generate")
    results["problems_per_second"] = {
        name: quartiles(settings.problems / np.array(values)) for name, values in measured[1].items()
    }
    return results
