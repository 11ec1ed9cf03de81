"""`nested-reft run`: the command of Snakemake that it becomes, and the mistakes that it refuses."""

import re

import pytest

from nested_reft.errors import UserError
from nested_reft.study.run import snakemake_command
from tests.conftest import ROOT, run

SMOKE = str(ROOT / "config/smoke.yaml")


def test_the_study_runs_with_all_cores_by_the_workflow_of_the_repository():
    command = snakemake_command([SMOKE])
    assert command[1:] == [
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        "all",
        "--configfile",
        SMOKE,
    ]


def test_without_a_config_it_is_the_embedded_study():
    assert snakemake_command(["-n"])[-1] == str(ROOT / "config/config.yaml")


@pytest.mark.parametrize(
    ("arguments", "options", "changes"),
    [
        ([SMOKE, "grid.seed=3"], [], ['grid={"seed": 3}']),
        ([SMOKE, "training.max_steps=3", "training.epsilon=.1"], [], ['training={"max_steps": 3, "epsilon": 0.1}']),
        ([SMOKE, "study=b", "--cores", "2", "tracking.uri=null"], ["--cores", "2"], ["study=", "tracking="]),
        ([SMOKE, "--config", "grid={seed: 4}", "study=b", "-c2"], ["-c2"], ["grid=", "study="]),
        ([SMOKE, "--resources", "gpu=2", "-j", "1"], ["--resources", "gpu=2", "-j", "1"], []),
        ([SMOKE, "results/smoke/tracking.json", "-c", "1"], ["results/smoke/tracking.json", "-c", "1"], []),
        (["-n", SMOKE, "--cores=1"], ["-n", "--cores=1"], []),
        (["--configfile", SMOKE, "-c1"], ["-c1"], []),
        ([SMOKE, "--workflow-profile", "slurm"], ["--workflow-profile", "slurm"], []),
        ([f"--configfile={SMOKE}", "-c1"], ["-c1"], []),
        (["grid.skip_ratio=[0.15]", SMOKE, "-c1"], ["-c1"], ["grid="]),
        ([SMOKE, "-c", "1", "training={max_steps: 3}"], ["-c", "1"], ['training={"max_steps": 3}']),
        ([SMOKE, "-n", "study=b", "--cores=all"], ["-n", "--cores=all"], ["study="]),
        ([SMOKE, "-j2", "--set-threads", "sft=2"], ["-j2", "--set-threads", "sft=2"], []),
    ],
)
def test_changes_options_and_targets_are_told_apart(arguments, options, changes):
    command = snakemake_command(arguments)
    assert command[command.index("--configfile") + 1] == SMOKE
    assert [argument for argument in options if argument not in command] == []
    assert ("all" in command) != any(re.match("-[cj]|--cores|--workflow", option) for option in options)
    passed = command[command.index("--config") + 1 :] if changes else []
    assert "--config" in command or not changes
    assert len(passed) == len(changes)
    assert all(one.startswith(start) for one, start in zip(passed, changes, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config/nope.yaml"], "the config config/nope.yaml does not exist"),
        ([str(ROOT / "config")], "is a folder; give the YAML file of a study"),
        ([SMOKE, "other.yaml"], "are two configs, but one file describes a study; give one"),
        (["mine", "other.yaml"], "mine and other.yaml are two configs"),
        (["--configfile"], "--configfile names no YAML file"),
        ([SMOKE, "seed=3"], "`seed` is not known; did you mean `grid.seed` or"),
        ([SMOKE, "gird.seed=3"], "`gird` is not known; did you mean `grid`?"),
        ([SMOKE, "--config", "training={max_steps:", "3}"], "is not complete; quote it for the shell"),
        ([SMOKE, "--config", "training"], "'training' is not a change of a key"),
        ([str(ROOT / "README.md")], "README.md is not YAML: line "),
        ([SMOKE, "-n", "max_steps=3"], "`max_steps` is not known; did you mean `training.max_steps`"),
        ([SMOKE, "training.max_steps", "=", "3"], "has a space beside its `=`"),
        ([SMOKE, "training.max_steps=", "3"], "has a space beside its `=`"),
        ([SMOKE, "training.max_steps", "=3"], "has a space beside its `=`"),
        ([SMOKE, "training.max_steps="], "`training.max_steps` is null"),
        ([SMOKE, "--cores", "-1"], "--cores is '-1'; give a number from 1, as in --cores 2, or `all`"),
        ([SMOKE, "--cores=0"], "--cores is '0'"),
        ([SMOKE, "-ctwo"], "-c is 'two'"),
        ([SMOKE, "-n", "--jobs"], "--jobs is ''"),
    ],
)
def test_a_mistake_is_refused_before_snakemake_starts(arguments, words):
    with pytest.raises(UserError, match=re.escape(words)):
        snakemake_command(arguments)


def test_a_study_runs_in_the_users_own_folder(tmp_path):
    """A dry run: the options of Snakemake pass through, and the files are below the current folder."""
    planned = run("nested-reft", "run", SMOKE, "grid.seed=[0, 1]", "-n", cwd=tmp_path)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert re.search(r"^train +6$", planned.stdout, re.M)
    assert not (tmp_path / "results").exists()


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    finished = run("nested-reft", "run", "config/nope.yaml", "-n", cwd=tmp_path)
    assert finished.returncode == 2 and finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("Error: the config config/nope.yaml does not exist")
