"""The entry points: help, version, logging and exit codes."""

import logging
import sys

import pytest
import typer
from typer.testing import CliRunner

from nested_reft import __version__
from nested_reft.cli import COMMANDS, app
from tests.conftest import run

RUNNER = CliRunner()


@pytest.mark.parametrize("command", [["nested-reft"], [sys.executable, "-m", "nested_reft"]])
def test_both_entry_points_print_the_version(command):
    finished = run(*command, "--version")
    assert (finished.returncode, finished.stdout) == (0, f"nested-reft {__version__}\n"), finished.stderr


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, name, *_ in COMMANDS])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself(group, name, option):
    shown = RUNNER.invoke(app, [*([group] if group else []), name, option])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


@pytest.mark.parametrize("path", [[], *[[*([group] if group else []), name] for group, name, *_ in COMMANDS]])
def test_no_help_is_cut_at_80_columns(path):
    shown = RUNNER.invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    assert "…" not in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80


def test_the_help_says_what_the_program_is_for_and_lists_commands_in_the_order_of_their_use():
    shown = RUNNER.invoke(app, ["--help"]).output
    stages = [f"\n│ {name} " for name in ("prepare", "sft", "train", "evaluate", "analyse")]
    texts = ["Train a language model", "nested-reft run config/mine.yaml", "Stages, in the order", *stages]
    texts += ["Inspection", "Maintenance", "Exit codes"]
    places = [shown.find(text) for text in texts]
    assert -1 not in places and places == sorted(places)


def test_a_shell_completes_the_name_of_a_command(monkeypatch):
    for name, value in {
        "_NESTED_REFT_COMPLETE": "complete_bash",
        "COMP_WORDS": "nested-reft eva",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert run("nested-reft").stdout.split() == ["evaluate"]


def test_every_option_of_every_command_has_a_help_text():
    def check(command, path):
        for parameter in command.params:
            assert parameter.help if parameter.param_type_name == "option" else True, f"{path} {parameter.name}"
        for name, child in getattr(command, "commands", {}).items():
            check(child, f"{path} {name}")

    check(typer.main.get_command(app), "nested-reft")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layers", "embedded/tiny-28", "--skip-ratios", "2"], "--skip-ratios is '2'; give numbers from 0 to below 1"),
        (["track", "no-such-folder"], "results folder 'no-such-folder' does not exist"),
        (["pretrain", "tiny-82", "--out", "x"], "tiny-82 is not an embedded model; choose one of tiny-28, wide-20"),
        (["evaluate", "--out", "x"], "`evaluate` needs --settings, --model and --benchmarks, or --regrade"),
        (["evaluate", "--out", "x", "--regrade", "--settings", "{}"], "--regrade reads only the records in --out"),
        (["analyse", "--out", "x"], "`analyse` needs --settings, --results and --out, or --from"),
        (["analyse", "--from", ".", "--settings", "{}"], "--from reads only the report"),
        (["grade", "no-such-file"], "no-such-file does not exist; give a file of JSON lines"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words, tmp_path):
    finished = run("nested-reft", *arguments, cwd=tmp_path)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("Error: ") and words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "own", "others"), [([], logging.INFO, logging.WARNING), (["-v"], 10, logging.INFO)]
)
def test_the_log_has_details_of_this_package_and_warnings_of_others(options, own, others):
    code = (
        "import logging, sys; sys.argv = ['nested-reft', *sys.argv[1:], 'layers', 'embedded/tiny-28']\n"
        "from nested_reft.cli import app\n"
        "app(standalone_mode=False)\n"
        "print([logging.getLogger(name).getEffectiveLevel() for name in ('nested_reft.records', 'transformers_like')])"
    )
    finished = run(sys.executable, "-c", code, *options)
    assert finished.stdout.splitlines()[-1] == str([own, others]), finished.stderr
