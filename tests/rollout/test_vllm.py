"""Completions by vLLM: what it is asked for and what becomes of its answers, with a stand-in for vLLM itself."""

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
from nested_reft.rollout.vllm import end_tokens
from nested_reft.stages.evaluate import evaluate, generate_completions
from tests.conftest import TINY

PROMPTS = ["Anna has 3 apples.", "Ben has 12 pears and buys 5 more.", "Anna has 3 apples.", "1 + 1?"]
END = 2


@pytest.fixture()
def vllm(monkeypatch):
    """Stand in for vLLM: it keeps what it is given, and completes by the last three tokens of a prompt and an end."""
    asked = SimpleNamespace(engine=None, prompts=None, sampling=None)

    class LLM:
        def __init__(self, **settings):
            asked.engine = settings

        def generate(self, prompts, sampling_params, *, use_tqdm=True):
            asked.prompts = [prompt["prompt_token_ids"] for prompt in prompts]
            asked.sampling = [vars(params) for params in sampling_params]
            return [answer(*request) for request in zip(asked.prompts, asked.sampling, strict=True)]

    def answer(prompt, sampling):
        tokens = (*prompt[-3:], END)[: sampling["max_tokens"]]
        reason = "stop" if tokens[-1] in sampling["stop_token_ids"] else "length"
        # As vLLM without detokenization: the end token is among the tokens, and there is no text.
        return SimpleNamespace(outputs=[SimpleNamespace(text="", token_ids=tokens, finish_reason=reason)])

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return asked


def complete(**settings):
    return generate_completions(str(TINY), PROMPTS, Evaluation(sampler="vllm", **settings))


def test_prompts_are_the_same_tokens_and_answers_keep_their_order(vllm):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts, lengths = complete(max_new_tokens=7)
    prompt_ids = tokenizer(PROMPTS)["input_ids"]
    assert vllm.prompts == prompt_ids
    assert texts == [tokenizer.decode(ids[-3:]) for ids in prompt_ids] and len(set(texts)) == 3
    assert lengths == [4, 4, 4, 4]  # the end token counts
    assert complete(max_new_tokens=2)[1] == [2, 2, 2, 2]


def test_the_engine_gets_the_settings_and_nothing_of_the_models_own(vllm):
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
def test_completions_are_drawn_as_the_settings_say(vllm, temperature, top_p):
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


def test_every_completion_has_a_seed_of_its_own_that_follows_the_runs_seed(vllm):
    def seeds(seed):
        complete(temperature=1.0, seed=seed)
        return [sampling["seed"] for sampling in vllm.sampling]

    assert len({*seeds(0), *seeds(1), *seeds(2)}) == 3 * len(PROMPTS)
    assert seeds(1) == seeds(1)


def test_completions_end_where_those_of_the_other_samplers_do(tmp_path):
    from nested_reft.model.loading import load_model

    bare = tmp_path / "bare"
    shutil.copytree(TINY, bare, ignore=shutil.ignore_patterns("generation_config.json"))
    assert end_tokens(str(TINY)) == load_model(TINY, "float32")[0].generation_config.eos_token_id == [2, 0]
    assert end_tokens(str(bare)) == [load_model(bare, "float32")[0].generation_config.eos_token_id] == [2]


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


def test_without_vllm_one_sentence_tells_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^evaluation\.sampler is 'vllm'.*pip install \.\[vllm\].*another sampler$"):
        complete()
