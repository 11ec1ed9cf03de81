"""A study in a YAML file, with changes from the command line such as `training.max_steps=3`."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nested_reft.config.mirror import use_mirror
from nested_reft.config.parse import parse_settings
from nested_reft.config.study import Study
from nested_reft.errors import UserError


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that a mapping holds twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if name.value in seen:
                raise yaml.MarkedYAMLError(problem=f"repeats the key `{name.value}`", problem_mark=name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def read_study(file: Path, changes: Iterable[str] = ()) -> Study:
    """Return the study of a YAML file, and let this process read its mirror.

    Args:
        file: the YAML file.
        changes: texts such as `training.max_steps=3`, which take precedence over the file.

    Raises:
        UserError: the file, a change or the study has a mistake.
    """
    settings = merged(read_mapping(file), read_changes(changes))
    if "study" not in settings:
        raise UserError(
            f"{file} has no key `study`; give the YAML file of a study, or add its name as in `study: mine`"
        )
    use_mirror(settings.get("mirror"))
    study: Study = parse_settings(Study, settings)
    return study


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        UserError: the file cannot be read, is empty, or is not a mapping from keys to values.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(str(path) for path in sorted(file.parent.glob("*.y*ml"))[:8])
        found = f"its folder has {known}" if known else "give the YAML file of a study"
        raise UserError(f"the config {file} does not exist; {found}") from None
    except IsADirectoryError:
        raise UserError(f"the config {file} is a folder; give the YAML file of a study") from None
    except UnicodeDecodeError:
        raise UserError(f"the config {file} is not text; give the YAML file of a study") from None
    except OSError as error:
        raise UserError(f"the config {file} cannot be read ({error.strerror}); correct that") from None
    try:
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - it is a safe loader
    except yaml.YAMLError as error:
        raise UserError(f"the config {file} is not YAML: {yaml_problem(error, text)}") from None
    if content is None:
        raise UserError(f"the config {file} is empty; config/config.yaml is an example of a study")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"the config {file} holds no keys such as `study: mine`; config/config.yaml is an example")
    return content


def yaml_problem(error: yaml.YAMLError, text: str) -> str:
    """Return the place, the reason and the remedy of a mistake in YAML."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML forbids
        return f"{' '.join(str(error).split())}; correct it"
    lines = text.splitlines()
    if mark.line < len(lines) and "\t" in lines[mark.line]:
        return f"line {mark.line + 1} has a tab; indent with spaces"
    problem = getattr(error, "problem", None) or "cannot be read"
    if "<block end>" in problem:
        problem = "is indented differently from the lines before it"
    if "another document" in problem:
        return f"line {mark.line + 1} begins a second document; keep one, because a file is one study"
    return f"line {mark.line + 1} {problem}; correct it"


def read_changes(changes: Iterable[str]) -> dict[str, Any]:
    """Return changes such as `training.max_steps=3` as nested settings; values are read as YAML.

    Raises:
        UserError: a change has no `=` or no key, or its value is not YAML.
    """
    settings: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise UserError(f"{change!r} is not a change of a key; write it as training.max_steps=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(
                f"the value of {change!r} is not complete; quote it for the shell, as in 'training={{max_steps: 3}}', "
                "or write training.max_steps=3"
            ) from None
        for part in reversed(parts):
            value = {part: value}
        settings = merged(settings, value)
    return settings


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with changes; a mapping is merged key by key, any other value is replaced."""
    result = dict(settings)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def as_snakemake_config(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as values of Snakemake's option `--config`, one per section: `training={"max_steps": 3}`."""
    return [f"{section}={json.dumps(value)}" for section, value in changes.items()]


def with_nulls(settings: Any) -> Any:
    """Return settings in which the text `null` is null, since Snakemake's `--config` reads null as text."""
    if isinstance(settings, Mapping):
        return {key: with_nulls(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [with_nulls(value) for value in settings]
    return None if isinstance(settings, str) and re.fullmatch("null|~", settings) else settings
