"""Fill a settings dataclass from YAML, a command line or a request body, and turn it back into plain data.

Unknown keys are refused with the nearest name, values with the type that was wanted; all faults at once.
Rules inside the dataclass (`__post_init__`) are reported in the same list.

Source: this project.  Checked against: round trips and one refused example for each kind of type.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from letheon.errors import BadInput, nearest

T = TypeVar("T")


def fill(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping.

    Args:
        cls: a dataclass whose fields are plain types, Literals, unions, lists, tuples or mappings.
        values: key -> value, as YAML or a command line gives them ("1e-4" is accepted for a float: YAML 1.1 reads it
            as text).
        where: named in each fault, such as "forget.method" or "--smooth".
    Raises:
        BadInput: with every unknown key, every wrong type, every missing key, or what `__post_init__` refused.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Point:
    ...     x: float = 0.0
    >>> fill(Point, {"x": "1e-3"}, where="point")
    Point(x=0.001)
    """
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    problems: list[str] = []
    ready: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            problems.append(
                f"{where}: unknown key {key!r}.{nearest(str(key), known)} Known: {', '.join(known) or 'none'}"
            )
            continue
        try:
            if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
                ready[key] = fill(hints[key], value, where=f"{where}.{key}")
            else:
                ready[key] = _coerce(value, hints[key])
        except BadInput as error:
            problems.extend(error.problems)
        except TypeError:
            problems.append(f"{where}.{key}: {value!r} is not {_words(hints[key])}")
    for name, field in known.items():
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_required and name not in values:
            problems.append(f"{where}: no {name!r}, which has no default")
    if problems:
        raise BadInput(problems)
    try:
        return cls(**ready)
    except BadInput as error:
        raise BadInput([f"{where}: {problem}" for problem in error.problems]) from error


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as dictionaries, lists and text: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _coerce(value: Any, hint: Any) -> Any:
    """The value as the hinted type, or TypeError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        for option in args:
            if value == option and isinstance(value, bool) == isinstance(option, bool):
                return option
        raise TypeError
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(value, args)
    if hint is type(None):
        if value is None or value == "null":
            return None
        raise TypeError
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise TypeError
        items = [_coerce(item, args[0]) for item in value]
        return items if origin is list else tuple(items)
    if origin is not None:
        if not isinstance(value, Mapping):
            raise TypeError
        return {_coerce(key, args[0]): _coerce(item, args[1]) for key, item in value.items()}
    return _coerce_simple(value, hint)


def _coerce_union(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        if option is not str and option is not Path:
            try:
                return _coerce(value, option)
            except TypeError:
                continue
    for option in (str, Path):
        if option in options:
            return _coerce(value, option)
    raise TypeError


def _coerce_simple(value: Any, hint: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise TypeError
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        try:
            number = hint(value)
        except (ValueError, OverflowError) as error:
            raise TypeError from error
        if not math.isfinite(number):  # passes every rule that is not written for it, and JSON cannot hold it
            raise TypeError
        if hint is int and isinstance(value, float) and value != number:
            raise TypeError
        return number
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise TypeError


def _words(hint: Any) -> str:
    """The type as a person would say it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(option) for option in args)
    if hint is type(None):
        return "null"
    if origin in (list, tuple):
        return f"a list of {_many(args[0])}"
    if origin is not None:
        return f"a mapping of {_words(args[0])} to {_words(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "a mapping of settings"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _many(hint: Any) -> str:
    """The plural of `_words`."""
    names = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}
    return names.get(hint, _words(hint))
