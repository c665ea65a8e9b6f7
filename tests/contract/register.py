"""The folders of methods as parameters of tests: every method, and its settings varied one by one."""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from types import UnionType
from typing import Any, Literal

import pytest

from letheon.errors import BadInput
from letheon.methods import build, describe, load, names


def options(hint: Any) -> list[Any]:
    """The Literal values that a type admits."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return [value for part in typing.get_args(hint) for value in options(part)]
    return []


def takes_numbers(hint: Any) -> bool:
    parts = typing.get_args(hint) if typing.get_origin(hint) in (UnionType, typing.Union) else (hint,)
    return int in parts or float in parts


def fields(kind: str, name: str) -> dict[str, Any]:
    cls = load(kind, name)
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def variations(kind: str, name: str) -> tuple[dict[str, Any], ...]:
    """The defaults, each Literal value of each setting, and each number halved and doubled where that is allowed; each once."""
    default = describe(build(kind, name))
    found = [default]
    for setting, hint in fields(kind, name).items():
        values = options(hint)
        if takes_numbers(hint):
            number = default[setting] if isinstance(default[setting], int | float) else 1.0
            values += [number * 0.5, number * 2]
        for value in values:
            candidate = {**default, setting: value}
            if candidate in found:
                continue
            try:
                build(kind, candidate)
            except BadInput:
                continue
            found.append(candidate)
    return tuple(found)


def every_variation(*kinds: str) -> list[Any]:
    return [
        pytest.param(kind, spec, id=f"{kind}-{name}-{number}")
        for kind in kinds
        for name in names(kind)
        for number, spec in enumerate(variations(kind, name))
    ]
