"""The embedded models: their tokenizer and chat template."""

from transformers import AutoTokenizer

from nested_reft.data.prompts import format_prompt
from tests.conftest import TINY


def test_the_embedded_tokenizer_round_trips_and_its_chat_template_is_the_prompt():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for text in (
        "\\frac{1}{2} \\boxed{-12,345.67}\n\tπ ≈ 3.14159",
        "日本語\x00é",
        "if x:\n    return 1  # two  spaces",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    messages = [{"role": "user", "content": "What is 1+1?"}]
    templated = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert templated == format_prompt("What is 1+1?", "qwen-math")
