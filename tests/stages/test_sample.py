"""What `sample` shows: each model is asked with the prompt of its run."""

import shutil

import pytest

from nested_reft.config.sections import Evaluation, Prompt
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.records.files import write_versioned_json
from nested_reft.stages import sample as sampling
from nested_reft.stages.evaluate import generate_completions
from tests.conftest import TINY, run

PROBLEM = "Ana has 41 coins and gets 30 more. How many coins does Ana have now?"
SETTINGS = Evaluation(max_new_tokens=32, dtype="float32")


@pytest.fixture()
def training(tmp_path):
    """Return the folder of a training with the prompt template `none`."""
    folder = tmp_path / "training"
    shutil.copytree(TINY, folder / "model")
    axes = {"model": "m", "dataset": "d", "skip_ratio": 0.15, "border": 1, "mitigation": "retrace", "seed": 3}
    settings = {"prompt": {"template": "none"}}
    write_versioned_json(folder / "run.json", {"stage": "train", "run": axes, "settings": settings})
    return folder


def test_a_run_brings_its_prompt_and_its_name(training):
    expected = ("15% retrace, seed 3", training / "model", Prompt(template="none"))
    assert sampling.find_model(training) == sampling.find_model(training / "model") == expected
    assert sampling.find_model(TINY) == ("tiny-28", TINY, Prompt())


def test_a_folder_without_a_model_is_refused(training):
    shutil.rmtree(training / "model")
    with pytest.raises(UserError, match="training holds no model; give a folder such as"):
        sampling.find_model(training)


def test_each_model_answers_its_own_prompt(training):
    models = [sampling.find_model(TINY), sampling.find_model(training)]
    (first,), (second,) = sampling.sample(models, PROBLEM, SETTINGS)
    prompts = [format_prompt(PROBLEM, template) for template in ("qwen-math", "none")]
    assert [first, second] == [generate_completions(str(TINY), [prompt], SETTINGS)[0][0] for prompt in prompts]
    assert first != second and "71" in first


def test_several_samples_differ_and_are_repeated_by_the_seed():
    models = [sampling.find_model(TINY)] * 2
    settings = SETTINGS.model_copy(update={"num_samples": 8, "temperature": 1.5, "seed": 1})
    first, second = sampling.sample(models, PROBLEM, settings)
    assert first == second and len(set(first)) > 1


def test_the_command_shows_models_side_by_side(training):
    shown = run("nested-reft", "sample", "embedded/tiny-28", str(training), "--problem", PROBLEM)
    assert shown.returncode == 0, shown.stderr
    assert "tiny-28" in shown.stdout and "15% retrace, seed 3" in shown.stdout
    assert "-> 71" in shown.stdout


def test_several_samples_of_greedy_decoding_are_refused():
    shown = run("nested-reft", "sample", "embedded/tiny-28", "--problem", "x", "--num", "2", "--temperature", "0")
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert "--num is 2 at --temperature 0, where all completions are the same" in shown.stderr
