"""`nested-reft layers` and `nested-reft diagnose`: what a user looks at before training."""

import json

import pandas as pd
import pytest

from nested_reft.embedded.problems import generate
from nested_reft.errors import UserError
from nested_reft.model.describe import describe_stack
from nested_reft.stages import diagnose as diagnosis
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


def test_layers_are_told_for_a_folder_an_embedded_model_and_a_type():
    for model in (str(TINY), "embedded/tiny-28"):
        told = run("nested-reft", "layers", model)
        assert told.returncode == 0 and "N = 28 layers" in told.stdout and "26 layers may be skipped" in told.stdout
    assert describe_stack("gemma3_text", 1, [0.1]).valid_layers[:5] == [1, 2, 3, 4, 6]  # 5 is the first of its type


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "model 'nowhere' is not a model type of transformers, and does not exist here"),
        (["ctrl"], "CTRLLMHeadModel has no plain stack of 48 decoder layers; it cannot be nested"),
        (["gemma3n_text"], "shares keys and values between layers"),
        (["qwen2", "--skip-ratios", "0.99"], "skip ratio 0.99 skips 32 of 32 layers, of which 30 may be skipped"),
        (["qwen2", "--skip-ratios", "5%"], "--skip-ratios is '5%'; give numbers from 0 to 1"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    told = run("nested-reft", "layers", *arguments)
    assert told.returncode == 2 and sentence in told.stderr and "Traceback" not in told.stderr


def test_a_diagnosis_orders_ratios_and_layers(tmp_path):
    rows = [{"problem": row.problem, "answer": row.answer} for row in generate("mixed", "train", 8, seed=3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["diagnose", str(TINY), "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")]
    sizes = [
        "--skip-ratios",
        "0.05,0.5",
        "--num-masks",
        "2",
        "--num-generations",
        "2",
        "--max-completion-length",
        "12",
    ]
    told = run("nested-reft", *command, *sizes)
    assert told.returncode == 0, told.stderr
    by_ratio = pd.read_csv(tmp_path / "out" / "skip_ratios.csv")
    assert by_ratio["num_skipped"].tolist() == [0, 1, 14]
    assert abs(by_ratio["kl"][0]) < 1e-4 and by_ratio["acceptance_rate"][0] > 0.9999  # the numerical control
    assert by_ratio["kl"][0] < by_ratio["kl"][1] < by_ratio["kl"][2]
    assert (by_ratio["mean_length"] == 12).all()
    by_layer = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert by_layer["layer"].tolist() == list(range(1, 27)) and (by_layer["kl"] > 0).all()
    assert (tmp_path / "out" / "diagnosis.svg").exists() and (tmp_path / "out" / "diagnosis.png").exists()


def test_the_kl_of_a_layer_is_that_of_its_samples(small_model):
    """The exact KL of skipping one layer against the k1 estimate from tokens sampled with it skipped."""
    import torch
    from transformers import AutoTokenizer

    from nested_reft.model.layers import nested

    settings = diagnosis.Settings([], 1, 0, 0, 0, 16, True, 64, 1.0, 0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    with nested(small_model, [2]):
        sampled = diagnosis.draw(small_model, tokenizer, [[5, 6, 7], [8, 9]] * 200, settings)
    estimate = -diagnosis.log_ratios(small_model, sampled, settings)
    exact = diagnosis.layer_kl(small_model, 2, sampled, settings)
    assert exact > 0.01
    assert estimate.mean().item() == pytest.approx(exact, abs=4 * estimate.std().item() / len(estimate) ** 0.5)


def test_a_diagnosis_of_what_cannot_be_nested_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot be diagnosed: 28 layers cannot be skipped where only 26 may be"):
        settings = diagnosis.Settings([0.99], 1, 1, 1, 1, 4, True, 4, 1.0, 0)
        diagnosis.diagnose(TINY, "float32", tmp_path / "unread.jsonl", "none", settings)
