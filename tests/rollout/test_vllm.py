"""Completions by vLLM: the requests and the use of the answers, with a stub in place of vLLM itself."""

import inspect
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from transformers import AutoTokenizer

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.errors import UserError
from nested_reft.records.files import read_json, write_rows
from nested_reft.records.stage_record import StageRecord
from nested_reft.rollout.vllm import read_eos_token_ids
from nested_reft.stages.evaluate import evaluate, generate_completions
from tests.conftest import TINY

PROMPTS = ["Anna has 3 apples.", "Ben has 12 pears and buys 5 more.", "Anna has 3 apples.", "1 + 1?"]
EOS = 2


@pytest.fixture()
def vllm(monkeypatch):
    """Replace vLLM by a stub that records its arguments. It completes a prompt by its last three tokens and EOS."""
    requested = SimpleNamespace(engine=None, prompts=None, sampling=None)

    class LLM:
        def __init__(self, **settings):
            requested.engine = settings

        def generate(self, prompts, sampling_params, *, use_tqdm=True):
            requested.prompts = [prompt["prompt_token_ids"] for prompt in prompts]
            requested.sampling = [vars(params) for params in sampling_params]
            return [answer(*request) for request in zip(requested.prompts, requested.sampling, strict=True)]

    def answer(prompt, sampling):
        tokens = (*prompt[-3:], EOS)[: sampling["max_tokens"]]
        reason = "stop" if tokens[-1] in sampling["stop_token_ids"] else "length"
        # vLLM without detokenization returns no text, and EOS is one of the tokens.
        return SimpleNamespace(outputs=[SimpleNamespace(text="", token_ids=tokens, finish_reason=reason)])

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return requested


def complete(**settings):
    return generate_completions(str(TINY), PROMPTS, Evaluation(sampler="vllm", **settings))


def test_prompts_are_the_same_tokens_and_answers_keep_their_order(vllm):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts, lengths, sampler = complete(max_new_tokens=7)
    prompt_ids = tokenizer(PROMPTS)["input_ids"]
    assert vllm.prompts == prompt_ids
    assert texts == [tokenizer.decode(ids[-3:]) for ids in prompt_ids] and len(set(texts)) == 3
    assert lengths == [4, 4, 4, 4] and sampler == "vllm"  # EOS counts
    assert complete(max_new_tokens=2)[1] == [2, 2, 2, 2]


def test_vllm_gets_the_settings_and_ignores_the_models_own(vllm):
    complete(max_new_tokens=7, batch_size=3, dtype="float32", seed=5)
    longest = max(map(len, vllm.prompts))
    assert vllm.engine == {
        "model": str(TINY),
        "dtype": "float32",
        "seed": 5,
        "trust_remote_code": False,
        "generation_config": "vllm",
        "max_num_seqs": 3,
        "max_model_len": longest + 7,
    }


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.6, 0.95)])
def test_sampling_parameters_are_those_of_the_settings(vllm, temperature, top_p):
    complete(temperature=temperature, top_p=top_p, max_new_tokens=7)
    for sampling in vllm.sampling:
        seedless = {name: value for name, value in sampling.items() if name != "seed"}
        assert seedless == {
            "n": 1,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,
            "max_tokens": 7,
            "ignore_eos": True,
            "stop_token_ids": [2, 0],
            "detokenize": False,
        }


def test_every_completion_has_its_own_seed_derived_from_the_seed_of_the_run(vllm):
    def seeds(seed):
        complete(temperature=1.0, seed=seed)
        return [sampling["seed"] for sampling in vllm.sampling]

    assert len({*seeds(0), *seeds(1), *seeds(2)}) == 3 * len(PROMPTS)
    assert seeds(1) == seeds(1)


def test_completions_end_where_those_of_the_other_samplers_do(tmp_path):
    from nested_reft.model.loading import load_model

    bare = tmp_path / "bare"
    shutil.copytree(TINY, bare, ignore=shutil.ignore_patterns("generation_config.json"))
    assert read_eos_token_ids(str(TINY)) == load_model(TINY, "float32")[0].generation_config.eos_token_id == [2, 0]
    assert read_eos_token_ids(str(bare)) == [load_model(bare, "float32")[0].generation_config.eos_token_id] == [2]


def test_records_are_those_of_the_other_samplers_but_for_the_completions(vllm, tmp_path):
    problems = [
        {"benchmark": "sums", "problem": "1 + 1?", "answer": ["2"]},
        {"benchmark": "sums", "problem": "2 + 2?", "answer": ["4", "four"]},
    ]
    write_rows(tmp_path / "benchmarks.jsonl", problems)
    records = {}
    for sampler in ("engine", "vllm"):
        settings = Evaluation(sampler=sampler, num_samples=2, temperature=1.0, max_new_tokens=4, dtype="float32")
        record = StageRecord(tmp_path / sampler, "evaluate", {"model": "m"}, {}, {}, None, "study")
        evaluate(settings, Prompt(), str(TINY), tmp_path / "benchmarks.jsonl", record)
        records[sampler] = pd.read_parquet(tmp_path / sampler / "records.parquet")
    assert list(records["vllm"].columns) == list(records["engine"].columns)
    given = ["benchmark", "problem_id", "sample", "problem", "answer", "prompt"]
    pd.testing.assert_frame_equal(records["vllm"][given], records["engine"][given])
    assert list(records["vllm"]["length"]) == [4] * 4 and records["vllm"]["truncated"].all()
    assert read_json(tmp_path / "vllm" / "metrics.json").keys() == read_json(tmp_path / "engine/metrics.json").keys()
    assert vllm.prompts == AutoTokenizer.from_pretrained(TINY)(list(records["engine"]["prompt"]))["input_ids"]


def test_without_vllm_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^evaluation\.sampler is 'vllm'.*pip install \.\[vllm\].*another sampler$"):
        complete()


def test_vllm_accepts_the_names_of_the_arguments(vllm, monkeypatch):
    """The stub accepts any name; vLLM's own signatures do not."""
    complete(max_new_tokens=7)
    monkeypatch.undo()  # removes the stub
    package = pytest.importorskip("vllm")
    engine_arguments = pytest.importorskip("vllm.engine.arg_utils").EngineArgs
    in_llm = inspect.signature(package.LLM).parameters
    unknown = set(vllm.engine) - set(in_llm) - set(inspect.signature(engine_arguments).parameters)
    assert not unknown, "`LLM` passes what it does not name itself on to `EngineArgs`"
    assert set(vllm.sampling[0]) <= set(inspect.signature(package.SamplingParams).parameters)
    assert {"prompts", "sampling_params", "use_tqdm"} <= set(inspect.signature(package.LLM.generate).parameters)
