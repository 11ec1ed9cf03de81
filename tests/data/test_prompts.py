"""Prompts: any problem in every template, and the same one in every stage."""

from types import SimpleNamespace

import pytest

from nested_reft.config.sections import Evaluation, Nesting, Prompt, Sft, Training
from nested_reft.config.study import Run
from nested_reft.data.prompts import TEMPLATES, format_prompt
from tests.data.rows import math, write_lines

HOSTILE = r"Let {problem} be $\frac{1}{2}$, {0} and {x!r:>9}; what is {{problem}} %s \boxed{}?"


OWN = "Set {a, b} of {problem}; answer in \\boxed{}. {{"


@pytest.mark.parametrize("template", [*TEMPLATES, OWN])
def test_braces_of_a_problem_survive_every_template(template):
    around = format_prompt("@", template).split("@")
    assert len(around) == 2
    assert format_prompt(HOSTILE, template) == HOSTILE.join(around)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_stage_puts_a_problem_in_the_same_words(template, tmp_path, monkeypatch):
    from nested_reft.stages import evaluate, sft, train

    class Seen(Exception):
        pass

    def seen(prompts):
        raise Seen(prompts)

    write_lines(tmp_path / "rows.jsonl", [math(HOSTILE) | {"benchmark": "b"}])
    config = SimpleNamespace(get_text_config=dict)
    loaded = SimpleNamespace(config=config), SimpleNamespace(eos_token="<end>")
    for stage in (sft, train):
        monkeypatch.setattr(stage, "load_model", lambda *_: loaded)
    monkeypatch.setattr(train, "parameter_counts", lambda model: (0, 0))
    monkeypatch.setattr(sft.Dataset, "from_list", lambda rows: seen([row["prompt"] for row in rows]))
    monkeypatch.setattr(train, "build_trainer", lambda *rest: seen([row["prompt"] for row in rest[5]]))
    monkeypatch.setattr(evaluate, "generate_completions", lambda path, prompts, *_: seen(prompts))
    prompt, data = Prompt(template=template), tmp_path / "rows.jsonl"
    record = SimpleNamespace(out=tmp_path, checkpoints=tmp_path)
    grid_run = Run(model="m", dataset="d", skip_ratio=0.0, border=0, mitigation="base", seed=0)
    training = Training(bf16=False, prompts_per_step=1)
    stages = [
        lambda: sft.sft(Sft(bf16=False), prompt, tmp_path, 0, data, record),
        lambda: train.train(training, Nesting(), prompt, grid_run, tmp_path, data, record),
        lambda: evaluate.evaluate(Evaluation(), prompt, "m", data, record),
    ]
    for stage in stages:
        with pytest.raises(Seen) as caught:
            stage()
        assert caught.value.args[0] == [format_prompt(HOSTILE, template)]
