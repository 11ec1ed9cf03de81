"""`nested-reft layers`: the layers of a model, those that may be skipped, and bounds on the speed-up."""

import json

import pytest

from nested_reft.model.describe import describe_stack
from tests.conftest import TINY, run

# The shapes of the paper's models, without their weights.
QWEN_1_5B = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}


@pytest.mark.parametrize(
    ("widths", "kv_heads", "vocabulary", "bounds"),
    [(QWEN_1_5B, 2, 151936, [1.031, 1.100, 1.138]), (QWEN_7B, 4, 152064, [1.034, 1.110, 1.152])],
)
def test_the_bounds_of_the_papers_models(widths, kv_heads, vocabulary, bounds, tmp_path):
    shape = {"model_type": "qwen2", "num_hidden_layers": 28, "num_key_value_heads": kv_heads, "vocab_size": vocabulary}
    (tmp_path / "config.json").write_text(json.dumps(shape | widths))
    stack = describe_stack(str(tmp_path), border=1, skip_ratios=[0.05, 0.10, 0.15])
    assert [row.num_skipped for row in stack.skipping] == [1, 3, 4]  # Table 1
    assert [row.bound for row in stack.skipping] == pytest.approx([28 / 27, 28 / 25, 28 / 24])
    assert [row.bound_with_lm_head for row in stack.skipping] == pytest.approx(bounds, abs=6e-4)
    assert stack.valid_layers == list(range(1, 27))


def test_layers_are_listed_for_a_folder_an_embedded_model_and_a_type():
    for model in (str(TINY), "embedded/tiny-28"):
        finished = run("nested-reft", "layers", model)
        assert (
            finished.returncode == 0
            and "N = 28 layers" in finished.stdout
            and "26 layers can be skipped" in finished.stdout
        )
    assert describe_stack("gemma3_text", 1, [0.1]).valid_layers[:5] == [1, 2, 3, 4, 6]  # 5 is the first of its type


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "model 'nowhere' is not a model type of transformers, and does not exist"),
        (["ctrl"], "CTRLLMHeadModel has no plain stack of 48 decoder layers; it cannot be nested"),
        (["t5"], "model 't5' cannot be nested: Unrecognized configuration class"),
        (["gemma3n_text"], "shares keys and values between layers"),
        (["qwen2", "--skip-ratios", "0.99"], "skip ratio 0.99 skips 32 of 32 layers, of which 30 may be skipped"),
        (["qwen2", "--skip-ratios", "5%"], "--skip-ratios is '5%'; give numbers from 0 to below 1"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    finished = run("nested-reft", "layers", *arguments)
    assert finished.returncode == 2 and sentence in finished.stderr and "Traceback" not in finished.stderr
