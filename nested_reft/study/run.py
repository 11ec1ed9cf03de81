"""The command line of Snakemake for a study, from the shorter command line of `nested-reft run`."""

import re
import sys
from pathlib import Path

from nested_reft.config.sections import PACKAGE
from nested_reft.config.study_file import as_snakemake_config, read_changes, read_study
from nested_reft.errors import UserError

REPOSITORY = PACKAGE.parent
DOTTED_CHANGE = re.compile(r"[A-Za-z_]\w*(\.[\w<>-]+)+=", re.ASCII)
CHANGE = re.compile(r"[A-Za-z_][\w.-]*=", re.ASCII)
CONFIG_OPTION = re.compile(r"--configfiles?(=|$)")
# Options of Snakemake that say how many cores or jobs there are, or name a file that may say so.
AMOUNT = re.compile("-[cj]|--(cores|jobs|profile|workflow-profile)")


def split_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the changes of keys, and the targets and options of Snakemake.

    Changes stand before the first option, or have a dot in their key, or follow `--config`. Some options of Snakemake
    have values that look like changes, such as `--resources gpu=2`.
    """
    changes, others = [], []
    after_option, after_config = False, False
    for argument in arguments:
        if argument in ("--config", "-C"):
            after_config = True
        elif argument.startswith("-"):
            after_option, after_config = True, False
            others.append(argument)
        elif after_config or DOTTED_CHANGE.match(argument) or (CHANGE.match(argument) and not after_option):
            changes.append(argument)
        else:
            others.append(argument)
    return changes, others


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
        UserError: the config or a change has a mistake, or the package is installed without its workflow.
    """
    snakefile = REPOSITORY / "Snakefile"
    if not snakefile.exists():
        raise UserError(
            f"{snakefile} does not exist, because the package was installed without its repository; clone the "
            "repository and install it with `pip install --editable .`"
        )
    config, others = split_config(arguments)
    changes, others = split_changes(others)
    read_study(config, changes)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *others]
    if not any(AMOUNT.match(argument) for argument in others):
        command += ["--cores", "all"]
    command += ["--configfile", str(config)]
    return command + (["--config", *as_snakemake_config(read_changes(changes))] if changes else [])
