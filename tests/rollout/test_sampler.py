"""Which sampler is used for a model that the engine does not support."""

import pytest

from nested_reft.rollout.sampler import engine_for
from tests.model.families import PROMPTS, build
from tests.rollout.reference import GREEDY


@pytest.mark.parametrize(("family", "kind"), [("gpt_oss", "engine"), ("bloom", "generate")])
def test_an_unsupported_model_falls_back_on_the_next_sampler_and_the_log_says_why(family, kind, caplog):
    model = build(family)
    engine = engine_for(model, "engine-compiled", PROMPTS, GREEDY)
    assert (engine is None) == (kind == "generate") and (engine is None or not engine.compiled)
    tried = "engine-compiled" if kind == "engine" else "engine"
    expected = f"sampler {tried} cannot be used, and {kind} is used instead: {type(model).__name__}"
    assert caplog.messages[-1].startswith(expected)
