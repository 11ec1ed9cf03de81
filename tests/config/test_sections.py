"""The sections: registries give the accepted names, and batches are consistent."""

import pytest
import yaml

from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import BenchmarkSource, Grid, ModelSource, Prompt, Training
from nested_reft.config.study import Study
from nested_reft.config.templates import TEMPLATES
from nested_reft.errors import UserError
from nested_reft.mitigation import MITIGATIONS
from tests.config.studies import changed


def test_every_name_of_a_registry_is_accepted():
    grid = parse_settings(Grid, {"model": ["m"], "dataset": ["d"], "mitigation": list(MITIGATIONS)})
    assert grid.mitigation == list(MITIGATIONS)
    for name in TEMPLATES:
        assert parse_settings(Prompt, {"template": name}).template == name


def test_the_settings_hold_the_text_of_a_template_and_not_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("{problem}\n")
    monkeypatch.chdir(tmp_path)
    prompt = parse_settings(Prompt, {"template": "mine.txt"})
    assert prompt.template == "{problem}\n"
    (tmp_path / "mine.txt").unlink()  # a stage gets the text and does not read the file
    assert parse_settings(Prompt, prompt.model_dump()) == prompt


def test_sizes_of_a_generation_batch():
    training = Training(prompts_per_step=16, num_generations=8, per_device_train_batch_size=8, steps_per_generation=32)
    assert training.gradient_accumulation_steps == 16
    assert training.prompts_per_generation == 32
    assert training.optimizer_steps_per_generation == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps_per_generation": 5}, "has steps_per_generation 5, which is not a multiple of the 16 micro-batches"),
        (
            {"steps_per_generation": 48, "save_steps": 50},
            "has save_steps 50, which is not a multiple of the 3 optimizer",
        ),
        ({"reward_weights": [1.0]}, "has 1 reward_weights for 0 reward_funcs; give one weight for each function"),
        ({"reward_funcs": []}, r"`reward_funcs` is empty"),
        ({"sampler": "generate", "sampling_dtype": "bfloat16"}, "has sampling_dtype bfloat16 with sampler generate"),
    ],
)
def test_a_training_section_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        parse_settings(Training, changes)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("models/x.gguf", "does not exist, and a GGUF file is not fetched from the hub; correct the path"),
        ("files", "holds no config.json, but a GGUF file; give the path of the file: files/a.gguf"),
        ("files/notes.txt", "holds no config.json of a language model"),
    ],
)
def test_a_path_that_holds_no_model_is_refused(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.gguf").write_text("GGUF")
    (tmp_path / "files/notes.txt").write_text("")
    with pytest.raises(UserError, match=words):
        parse_settings(ModelSource, {"path": path})
    assert parse_settings(ModelSource, {"path": "files/a.gguf"}).local_path is None  # before it is dequantised


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (None, None, slice(0, None)),
        (None, 5, slice(0, 5)),
        ("700:1000", None, slice(700, 1000)),
        ("700:", None, slice(700, None)),
        (":700", 1000, slice(0, 700)),
        ("700:1000", 20, slice(700, 720)),
    ],
)
def test_rows_and_size_select_a_slice(rows, size, expected):
    source = BenchmarkSource(path="owner/name", rows=rows, size=size)
    assert source.row_slice == expected
    assert BenchmarkSource.model_validate_json(source.model_dump_json()) == source


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("700-1000", "`datasets.mixed.rows` is '700-1000', but should be two row numbers such as \"700:1000\""),
        ("-3:", "`datasets.mixed.rows` is '-3:', but should be two row numbers"),
        ("5:5", "`datasets.mixed.rows` is '5:5', which holds no row; give a larger number after the colon"),
        ("7:3", "`datasets.mixed.rows` is '7:3', which holds no row"),
        (650, "`datasets.mixed.rows` is the number 650, which YAML reads from digits such as 10:50; quote them"),
        ([0, 5], r"`datasets.mixed.rows` is \[0, 5\], but it should be a valid string"),
    ],
)
def test_rows_that_are_not_a_slice_are_refused(rows, words):
    with pytest.raises(UserError, match=words):
        parse_settings(Study, changed("datasets.mixed", {"path": "owner/name", "rows": rows}))
    assert yaml.safe_load("10:50") == 650


def test_generated_data_have_no_rows_to_choose_from():
    with pytest.raises(UserError, match=r"\(embedded/mixed\) is generated and has no `rows` to choose from"):
        parse_settings(Study, changed("datasets.mixed", {"path": "embedded/mixed", "size": 9, "rows": "0:5"}))
