"""Validation of settings: the first mistake becomes a UserError of one sentence."""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from nested_reft.config.sections import Section
from nested_reft.errors import UserError

# Keys of earlier versions, and what replaced them.
MOVED = {
    "nesting.border": "give a list, such as `grid: {border: [1]}`, because `grid.border` is now an axis of the grid"
}


def all_keys(section: type[BaseModel] = Section) -> set[str]:
    """Return the names of all keys of all sections."""
    return set(section.model_fields).union(*(all_keys(child) for child in section.__subclasses__()))


def config_key_name(path: str) -> str:
    """Return how a message names a key of a configuration."""
    return f"config key `{path}`" if path else "the config"


def option_name(path: str) -> str:
    """Return how a message names a key that was given as an option of a command."""
    return "--" + path.partition(".")[0].replace("_", "-")


def describe(error: Mapping[str, Any], name_of: Callable[[str], str] = config_key_name) -> str:
    """Return one sentence for a pydantic error: the key, its value, the remedy."""
    path = ".".join(str(part) for part in error["loc"])
    where = name_of(path)
    if error["type"] == "extra_forbidden":
        if path in MOVED:
            return f"{where} has moved; {MOVED[path]}."
        near = difflib.get_close_matches(str(error["loc"][-1]), all_keys(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else "remove it; config/README.md lists all keys."
        return f"{where} is not known; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing; add it (config/README.md explains it)."
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if error["type"] == "secret":  # the message must not repeat the value
        return f"{where} {message}."
    if error["type"] == "value_error":
        value = error["input"].get("path") if isinstance(error["input"], Mapping) else None
        return f"{where} {f'({value}) ' if value else ''}{message}."
    return f"{where} is {error['input']!r}, but {message[0].lower() + message[1:]}; correct it."


def parse_settings(
    section: type[Section], settings: Mapping[str, Any], name_of: Callable[[str], str] = config_key_name
) -> Any:
    """Return `settings` as a validated `section`; `name_of` names a key by its path in a message.

    Raises:
        UserError: the settings have a mistake; the message describes the first one.
    """
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise UserError(describe(error.errors()[0], name_of)) from None


def canonical(settings: Any) -> str:
    """Return sections, runs and plain values as JSON with sorted keys.

    Snakemake passes this text to a stage, and reruns the stage when the text changes.
    """

    def plain(value: Any) -> Any:
        return value.model_dump() if isinstance(value, BaseModel) else value

    return json.dumps(settings, default=plain, sort_keys=True)
