"""The commands that inspect models and completions."""

import json

import pytest
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config.stage_settings import DiagnosisSettings, GradientSettings
from nested_reft.errors import UserError

RUNNER = CliRunner()


def test_layers_prints_table_1():
    shown = RUNNER.invoke(app, ["layers", "embedded/tiny-28", "--skip-ratios", "0.05,0.15", "--border", "2"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].startswith("Qwen2ForCausalLM: N = 28 layers")
    assert lines[1] == f"24 layers can be skipped at border 2: {', '.join(str(layer) for layer in range(2, 26))}"
    assert [line.split()[:2] for line in lines[3:]] == [["0.050", "1"], ["0.150", "4"]]


@pytest.mark.parametrize(("command", "section"), [("diagnose", DiagnosisSettings), ("gradients", GradientSettings)])
def test_every_setting_is_an_option_with_the_same_default_and_help(command, section):
    import typer

    options = {option.name: option for option in typer.main.get_command(app).commands[command].params}
    for name, field in section.model_fields.items():
        if name not in ("skip_ratios", "mitigations", "ratio_levels"):
            assert options[name].default == field.default
            assert options[name].help == field.description


def test_a_wrong_setting_of_a_diagnosis_is_named_by_its_option(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    command = ["diagnose", str(tmp_path), "--data", str(tmp_path / "train.jsonl"), "--template", "qwen"]
    refused = RUNNER.invoke(app, command)
    assert isinstance(refused.exception, UserError)
    assert "--template is 'qwen'" in str(refused.exception)


def test_grade_reads_standard_input_and_writes_rows(tmp_path):
    rows = [{"completion": r"\boxed{4}", "answer": "4"}, {"completion": "four", "answer": "4"}]
    piped = "".join(json.dumps(row) + "\n" for row in rows)
    shown = RUNNER.invoke(app, ["grade", "-"], input=piped)
    assert shown.exit_code == 0, shown.output
    graded = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["correct"] for row in graded] == [True, False]
    assert RUNNER.invoke(app, ["grade", "-", "--out", str(tmp_path / "graded.jsonl")], input=piped).exit_code == 0
    written = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in written] == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["graded.jsonl"]
