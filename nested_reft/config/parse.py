"""Validation of settings: the first mistake becomes a UserError of one sentence."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nested_reft.config.sections import Section
from nested_reft.errors import UserError

# Keys of earlier versions, and what replaced them.
MOVED = {
    "nesting.border": "give a list, such as `grid: {border: [1]}`, because `grid.border` is now an axis of the grid"
}
NAME_RULE = "the letters A-Z and a-z, digits, `.`, `_` and `-`, and begins with a letter or a digit"


def known_keys(section: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield path and definition of all keys below a section; a path is (`grid`, `seed`) or (`models`, `<name>`)."""
    for name, field in section.model_fields.items():
        yield (name,), field
        for child in [field.annotation, *get_args(field.annotation)]:
            if isinstance(child, type) and issubclass(child, BaseModel):
                between = ("<name>",) if get_origin(field.annotation) is dict else ()
                yield from (((name, *between, *path), below) for path, below in known_keys(child))


def similar_keys(path: tuple[str, ...], section: type[BaseModel]) -> list[str]:
    """Return the known keys that an unknown key may stand for, as `grid.seed`.

    Args:
        path: the path of the unknown key.
        section: the section that the path begins in.
    """
    known = [one for one, _ in known_keys(section)]
    near = difflib.get_close_matches(path[-1], {one[-1] for one in known}, n=1)
    candidates = [one for one in known if one[-1:] == tuple(near)]
    neighbors = [one for one in candidates if len(one) == len(path) and one[0] == path[0]]
    return [".".join(one) for one in neighbors or candidates]


def config_key_name(path: str) -> str:
    """Return how a message names a key of a configuration."""
    return f"config key `{path}`" if path else "the config"


def option_name(path: str) -> str:
    """Return how a message names a key that was given as an option of a command."""
    return "--" + path.partition(".")[0].replace("_", "-")


def describe(
    error: Mapping[str, Any], section: type[BaseModel], name_of: Callable[[str], str] = config_key_name
) -> str:
    """Return one sentence for a pydantic error: the key, its value, the remedy.

    Args:
        error: the error.
        section: the section that was parsed.
        name_of: names a key by its path in the message.
    """
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    where, value = name_of(".".join(path)), error["input"]
    shown = "null" if value is None else f"{value!r:.200}"
    if error["type"] == "extra_forbidden":
        if ".".join(path) in MOVED:
            return f"{where} has moved; {MOVED['.'.join(path)]}."
        near = " or ".join(f"`{name}`" for name in similar_keys(path, section))
        hint = f"did you mean {near}?" if near else "remove it; config/README.md lists all keys."
        return f"{where} is not known; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing; add it (config/README.md explains it)."
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if error["type"] == "secret":  # the message must not repeat the value
        return f"{where} {message}."
    if error["type"] == "value_error":
        source = value.get("path") if isinstance(value, Mapping) else None
        return f"{where} {f'({source:.200}) ' if source else ''}{message}."
    if error["type"] == "string_pattern_mismatch":  # the only pattern is that of a name
        return f"{where} is {shown}, but a name consists of {NAME_RULE}; rename it."
    if error["type"] in ("model_type", "dict_type"):
        return f"{where} is {shown}, but it should be a mapping with keys of its own; correct it."
    if error["type"] == "too_short":
        return f"{where} is empty; give at least one value."
    if path[:2] == ("grid", "skip_ratio") and isinstance(value, int | float) and 1 <= value < 100:
        return f"{where} is {shown}, but a skip ratio is a share below 1; write {value / 100:g} for {value:g} %."
    field = dict(known_keys(section)).get(path)
    if field is not None and field.description and field.description.startswith("Fixed at"):
        reason = field.description[0].lower() + field.description[1:].rstrip(".")
        return f"{where} is {shown}, but it is {reason}; remove the key."
    return f"{where} is {shown}, but {message[0].lower() + message[1:]}; correct it."


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
        raise UserError(describe(error.errors()[0], section, name_of)) from None


def canonical(settings: Any) -> str:
    """Return sections, runs and plain values as JSON with sorted keys.

    Snakemake passes this text to a stage, and reruns the stage when the text changes.
    """

    def plain(value: Any) -> Any:
        return value.model_dump() if isinstance(value, BaseModel) else value

    return json.dumps(settings, default=plain, sort_keys=True)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level: {"training": {"seed": 0}} -> {"training.seed": 0}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
