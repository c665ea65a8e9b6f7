"""The verbs a recipe or a command line can name, and what each can be told, read without importing torch.

A verb is a function of the package (`letheon.forget`) whose file holds its settings as a frozen dataclass
(`ForgetSettings`). A setting whose description says "a method of kind K" takes a method: a name, or a name with
settings of its own. Everything that names settings (options, recipes, printed configurations) is derived from that.

Source: this project.  Checked against: the dataclasses themselves, once imported.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import letheon
from letheon.errors import BadInput, UnknownName
from letheon.methods import KINDS, Setting, build, describe, settings_in
from letheon.settings import fill, plain

VERBS = ("train", "forget", "quantize", "audit", "benchmark")
"""In the order of a request's life."""
MAKE_NO_MODEL = frozenset({"audit", "benchmark"})
"""Verbs after which the model is still the one that an earlier step made."""

_KIND = re.compile(r"[:,]? ?\ba method of kind `?(\w+)`?")


@cache
def settings(verb: str) -> tuple[Setting, ...]:
    """What a verb can be told. Raises UnknownName with the nearest verb."""
    if verb not in VERBS:
        raise UnknownName(verb, VERBS, what="a verb")
    path = Path(letheon.__file__).parent.joinpath(*_module(verb).split(".")[1:]).with_suffix(".py")
    return settings_in(path, _class_name(verb))


@cache
def kinds(verb: str) -> dict[str, str]:
    """Setting -> kind of method it takes."""
    found = {setting.name: _KIND.search(setting.doc) for setting in settings(verb)}
    return {name: match[1] for name, match in found.items() if match and match[1] in KINDS}


def description(setting: Setting) -> str:
    """The first sentence about a setting, without what every setting of its kind says."""
    return re.split(r"\.(?= |$)", _KIND.sub("", setting.doc), maxsplit=1)[0]


def default(setting: Setting) -> Any:
    """The default where it is a plain value or a path, as text; None where it is made by the class."""
    text = re.sub(r"^Path\((.*)\)$", r"\1", setting.default)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def is_required(setting: Setting) -> bool:
    """Whether the setting has no default."""
    return not setting.default


def function(verb: str) -> Callable[..., Any]:
    """The verb itself; imports torch."""
    call: Callable[..., Any] = getattr(letheon, verb)
    return call


def settings_class(verb: str) -> type[Any]:
    """The verb's dataclass; imports torch."""
    cls: type[Any] = getattr(importlib.import_module(_module(verb)), _class_name(verb))
    return cls


def with_preset(verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and below them the settings of the preset that they name. Raises UnknownName."""
    given = dict(values)
    if not given.get("preset") or not any(setting.name == "preset" for setting in settings(verb)):
        return given
    from letheon.unlearning.presets import preset

    return {**preset(given.pop("preset")), **given}


def own_code(verb: str, values: Mapping[str, Any]) -> list[str]:
    """A fault for each method that is given as a file of Python, or brings Python of its own along (lm_eval's tasks):
    a file of settings may not.
    """
    named = {name: values.get(name) for name in kinds(verb)}
    names = {name: spec.get("name") if isinstance(spec, Mapping) else spec for name, spec in named.items()}
    folders = {name: spec.get("include_path") for name, spec in named.items() if isinstance(spec, Mapping)}
    trust = "Say --allow-code (allow_code=True) if you trust this file"
    return [
        f"{name}: {text} is Python that would be run. {trust}"
        for name, text in names.items()
        if isinstance(text, str) and text.endswith(".py")
    ] + [
        f"{name}: the tasks in include_path {folder} may name Python that would be run. {trust}"
        for name, folder in folders.items()
        if folder is not None
    ]


def resolve(verb: str, values: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Every setting of a verb as plain data, defaults and the settings of methods included.

    `resolve` of what it returned is the same again.

    Args:
        verb: one of VERBS.
        values: setting -> value, as YAML or a command line gives them, or methods as instances.
        where: named in each fault; the verb when empty.
    Raises:
        BadInput: with every unknown key, wrong value and unknown method.
    """
    where = where or verb
    problems: list[str] = []
    resolved: dict[str, Any] = {}
    given = dict(values)
    try:
        given = with_preset(verb, values)
    except BadInput as error:
        problems += _placed(error, where)
    try:
        resolved = plain(fill(settings_class(verb), given, where=where))
    except BadInput as error:
        problems += _placed(error, where)
    chosen = {setting.name: given.get(setting.name, default(setting)) for setting in settings(verb)}
    for name, kind in kinds(verb).items():
        if chosen[name] is None and resolved.get(name) is None:
            continue
        try:
            resolved[name] = describe(build(kind, chosen[name], where=f"{where}.{name}"))
        except BadInput as error:
            problems += _placed(error, f"{where}.{name}")
    if problems:
        raise BadInput(problems)
    return resolved


def _placed(error: BadInput, where: str) -> list[str]:
    return [problem if problem.startswith(where) else f"{where}: {problem}" for problem in error.problems]


def _module(verb: str) -> str:
    # The package's own table, so that a verb is named in one place.
    return letheon._MODULES[verb]


def _class_name(verb: str) -> str:
    return f"{verb.capitalize()}Settings"
