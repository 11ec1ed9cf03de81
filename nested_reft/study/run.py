"""The command line of Snakemake for a study, from the shorter command line of `nested-reft run`."""

import re
import sys
from itertools import zip_longest
from pathlib import Path

from nested_reft.config.parse import known_keys
from nested_reft.config.sections import PACKAGE
from nested_reft.config.study import Study
from nested_reft.config.study_file import as_snakemake_config, read_changes, read_study
from nested_reft.errors import UserError

REPOSITORY = PACKAGE.parent
DOTTED_CHANGE = re.compile(r"[A-Za-z_]\w*(\.[\w<>-]+)+=", re.ASCII)
CHANGE = re.compile(r"[A-Za-z_][\w.-]*=", re.ASCII)
CONFIG_OPTION = re.compile(r"--configfiles?(=|$)")
# Options of Snakemake whose values look like changes, such as `--resources gpu=2`.
PAIRS = re.compile("--(set-|res|default-res)")
KEYS = {name for path, _ in known_keys(Study) for name in path}
# Options of Snakemake with a number of cores or jobs, and the number, if it is in the same argument.
NUMBER = re.compile("(-c|-j|--cores|--jobs)(?:$|=)?(.*)")
# Options of Snakemake that say how many cores or jobs there are, or name a file that may say so.
AMOUNT = re.compile("-[cj]|--(cores|jobs|profile|workflow-profile)")


def split_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the changes of keys, and the targets and options of Snakemake.

    Changes stand before the first option, or have a dot in their key, or follow `--config`, or have a known key and do
    not follow an option whose values look like changes.

    Raises:
        UserError: a change is written with spaces.
    """
    changes, others = [], []
    option = ""
    for argument in arguments:
        is_change = CHANGE.match(argument) and (not option or re.split("[.=]", argument)[0] in KEYS)
        if argument in ("--config", "-C"):
            option = "--config"
        elif argument.startswith("-"):
            option = argument
            others.append(argument)
        elif argument.startswith("=") or (argument.endswith("=") and argument != arguments[-1]):
            raise UserError("a change of a key has a space beside its `=`; write it as training.max_steps=3")
        elif option == "--config" or DOTTED_CHANGE.match(argument) or (is_change and not PAIRS.match(option)):
            changes.append(argument)
        else:
            others.append(argument)
    return changes, others


def check_amounts(arguments: list[str]) -> None:
    """Refuse numbers of cores or jobs by which Snakemake would start nothing, or fail in the middle of a study.

    Raises:
        UserError: the message names the option and its value.
    """
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if (option := NUMBER.fullmatch(argument)) is None:
            continue
        value = option[2] or following
        if not re.fullmatch("[1-9][0-9]*|all|unlimited", value):
            raise UserError(f"{option[1]} is {value!r}; give a number from 1, as in {option[1]} 2, or `all`")


def split_config(arguments: list[str]) -> tuple[Path, list[str]]:
    """Return the config, which is the first argument or the only YAML file, and the other arguments.

    Raises:
        UserError: there are two YAML files, or `--configfile` without one.
    """
    others = [CONFIG_OPTION.sub("", argument) for argument in arguments]  # `--configfile` may be left out
    others = [argument for argument in others if argument]
    plain = [argument for argument in others if not argument.startswith("-") and not CHANGE.match(argument)]
    configs = [argument for argument in plain if argument.endswith((".yaml", ".yml"))]
    if plain[:1] == others[:1] and plain[:1] != configs[:1]:
        configs = plain[:1] + configs
    if len(configs) > 1:
        raise UserError(f"{configs[0]} and {configs[1]} are two configs, but one file describes a study; give one")
    if not configs and any(CONFIG_OPTION.match(argument) for argument in arguments):
        raise UserError("--configfile names no YAML file; write `nested-reft run config/mine.yaml`")
    if not configs:
        return REPOSITORY / "config/config.yaml", others
    others.remove(configs[0])
    return Path(configs[0]), others


def snakemake_command(arguments: list[str]) -> list[str]:
    """Return the command that runs a study in the current folder; its first entry is a path.

    Args:
        arguments: the config or nothing for the embedded study, changes of keys, targets and options of Snakemake.

    Raises:
        UserError: the config, a change or a number of cores has a mistake, or the package is installed without its
            workflow.
    """
    snakefile = REPOSITORY / "Snakefile"
    if not snakefile.exists():
        raise UserError(
            f"{snakefile} does not exist, because the package was installed without its repository; clone the "
            "repository and install it with `pip install --editable .`"
        )
    config, others = split_config(arguments)
    changes, others = split_changes(others)
    check_amounts(others)
    read_study(config, changes)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *others]
    if not any(AMOUNT.match(argument) for argument in others):
        command += ["--cores", "all"]
    command += ["--configfile", str(config)]
    return command + (["--config", *as_snakemake_config(read_changes(changes))] if changes else [])
