"""Frozen, checked configurations, such as a network's or a recipe; a wrong one is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

_LONGEST_VALUE = 60  # letters of a refused value in a message
_SPEAKS_FOR_ITSELF = {"value_error", "missing", "extra_forbidden"}  # kinds of errors with messages that need no value

_Kind = TypeVar("_Kind", bound="Configuration")


class Configuration(BaseModel):
    """Base of all configurations: keys with checked values, frozen.

    Raises
    ------
    ValueError
        If a key is unknown, missing, or has a value that is not allowed. The message names the nearest known key.
    AttributeError
        If a value is changed later.

    Attributes
    ----------
    removed : keys of earlier versions -> what to write instead, for the error
    """

    removed: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            message = f"{type(self).__name__}: {explained(error, type(self))}"
        else:
            return
        raise ValueError(message)  # outside of the block, or pydantic's page of text would be printed as well

    # Lets pydantic check nested configurations itself, since pydantic knows the keys that lead there.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            kind = type(self).__name__
            raise AttributeError(f"a {kind} cannot be changed; make another one: .model_copy(update={{'{name}': ...}})")
        super().__setattr__(name, value)


def checked(kind: type[_Kind], values: Mapping[str, Any], source: str) -> _Kind:
    """Build a configuration from plain data, such as a file.

    Parameters
    ----------
    kind : class of the configuration
    values : plain data
    source : start of an error message, such as the name of the file

    Raises
    ------
    ValueError
        See `Configuration`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        message = f"{source}: {explained(error, kind)}"
    raise ValueError(message)


def explained(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return in one line what is wrong with the values of a configuration."""
    problems: dict[str, list[Any]] = {}  # pydantic has one problem for each alternative of a key
    for problem in error.errors(include_url=False, include_context=False):
        key, _ = _described(".".join(_keys(problem["loc"], kind)), kind)
        problems.setdefault(key, []).append(problem)
    return "; ".join(_explain(key, alike, kind) for key, alike in problems.items())


def _explain(key: str, problems: list[Any], kind: type[BaseModel]) -> str:
    first = problems[0]
    _, description = _described(key, kind)
    message = " or ".join(dict.fromkeys(_message(problem, kind) for problem in problems))
    message = message.replace(" or should be ", " or ")
    if description and first["type"] not in _SPEAKS_FOR_ITSELF:
        message = f"should be {description}"
    if first["type"] not in _SPEAKS_FOR_ITSELF:
        value = repr(first["input"])
        message += f", got {value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 3] + '...'}"
    return f"{key}: {message}" if key else message


def _message(problem: Any, kind: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        *sections, key = map(str, problem["loc"])
        section: Any = kind
        for part in sections:
            section = _section(section.model_fields[part].annotation)
        for place in (section, *(_section(field.annotation) for field in kind.model_fields.values())):
            if key in getattr(place, "removed", {}):
                return f"no key any more; {place.removed[key]}"
        close = [place for place in _places(key, kind) if place != ".".join([*sections, key])]
        close = close or get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(section.model_fields)}"
        return f"unknown key; {hint}"
    if problem["type"] == "missing":
        return "missing, a value is needed"
    if problem["type"] == "model_type":
        return "should be a mapping of keys to values"
    if problem["type"] == "path_type":
        return "should be a path"
    message: str = problem["msg"].removeprefix("Value error, ")
    message = message.replace(" after validation", "").split(", unable to")[0]
    return message.replace("Input should be", "should be")


def _described(key: str, kind: type[BaseModel]) -> tuple[str, str]:
    """Return the first part of a key with a description, and the description; the whole key and "" if there is none."""
    section: Any = kind
    parts = key.split(".")
    for n, part in enumerate(parts, start=1):
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            break
        if field.description is not None:
            return ".".join(parts[:n]), field.description
        section = _section(field.annotation)
    return key, ""


def _section(annotation: Any) -> Any:
    """Return the type of a key, without the None of a section that may be left out."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [each for each in get_args(annotation) if each is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _places(key: str, kind: type[BaseModel]) -> list[str]:
    """Return all full names of a key, at the top or in a section."""
    places = [key] if key in kind.model_fields else []
    for name, field in kind.model_fields.items():
        if key in getattr(_section(field.annotation), "model_fields", {}):
            places.append(f"{name}.{key}")
    return places


def _keys(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """Return the keys and indices that lead to a value, without pydantic's names for alternatives of a type."""
    keys: list[str] = []
    expected: Any = kind
    for part in location:
        if get_origin(expected) in (Union, UnionType) and len(set(get_args(expected)) - {type(None)}) > 1:
            expected = None
            continue
        keys.append(str(part))
        fields = getattr(_section(expected), "model_fields", {})
        expected = fields[part].annotation if part in fields else None
    return keys
