"""Find a method by its name. A folder of methods is the register: file name = method name = what the user types.

A method is one Python file with a docstring (first line: what it does; `Source:`; `Checked against:`) and one public
frozen dataclass of settings. The card of a method (name, summary, source, settings) is read with `ast`, so that
`letheon methods` and `--help` import neither torch nor the method. A path such as ./mine.py is a method too.

Source: this project.  Checked against: every file in the folders (contract test), a method given by path.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from letheon.errors import BadInput, UnknownName
from letheon.settings import Draft, draft, plain

KINDS: dict[str, str] = {
    "forget_term": "unlearning/forget_terms",
    "retain_term": "unlearning/retain_terms",
    "balance": "unlearning/balances",
    "smoother": "unlearning/smoothers",
    "scope": "unlearning/scopes",
    "rate": "training/rates",
    "quantizer": "quantization/quantizers",
    "rotation": "lowbit/rotations",
    "format": "quantization/formats",
    "probe": "audits/probes",
    "condition": "audits/conditions",
    "benchmark": "audits/benchmarks",
}
"""Kind of method -> its folder below the package. Adding a method never touches this table; only a new kind does."""

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass, as text."""

    name: str
    annotation: str
    default: str
    """As written; empty for a field that has none."""
    doc: str
    inner: tuple[Setting, ...] = ()
    """The fields of the field, where its type is a settings dataclass too."""


@dataclass(frozen=True)
class Card:
    """What a method's file says about itself, read without importing it."""

    name: str
    kind: str
    summary: str
    source: str
    checked_against: str
    docstring: str
    class_name: str
    settings: tuple[Setting, ...]
    path: Path


def names(kind: str) -> list[str]:
    """The methods of a kind, sorted: the files of its folder."""
    folder = _PACKAGE / KINDS[kind]
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def card(kind: str, name: str) -> Card:
    """The card of a method. Raises UnknownName with the nearest name."""
    return _read_card(kind, _locate(kind, name))


def cards() -> list[Card]:
    """The cards of all methods, by kind and name."""
    return [card(kind, name) for kind in KINDS for name in names(kind)]


@cache
def settings_in(path: Path, class_name: str) -> tuple[Setting, ...]:
    """The fields of the dataclass `class_name` in a file, read without importing it; none if it is not there."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name and _is_settings(node):
            return tuple(_settings(node, tree, path))
    return ()


def load(kind: str, name: str) -> type[Any]:
    """The public dataclass of a method. An import error inside the file is raised as it is, never swallowed."""
    path = _locate(kind, name)
    module = _import(path)
    cls: type[Any] = getattr(module, _read_card(kind, path).class_name)
    return cls


def build(kind: str, spec: Any, *, where: str = "") -> Any:
    """A method with its settings, from any of the three spellings.

    Args:
        kind: a key of KINDS.
        spec: "npo", {"name": "npo", "beta": 0.1}, or an instance (returned as it is).
        where: named in faults; the kind when empty.
    Raises:
        UnknownName, BadInput: an unknown method or setting, a wrong type, or a value that the method refuses.
    """
    return build_draft(kind, spec, where=where).checked()


def build_draft(kind: str, spec: Any, *, where: str = "") -> Draft[Any]:
    """The same with the faults of its settings beside it. Raises UnknownName, BadInput where there is no method."""
    where = where or kind
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        if (found := _kind_of(spec)) not in (None, kind):
            raise BadInput(f"{where}: {type(spec).__name__} is a {found}, not a {kind}")
        return Draft(spec, (), frozenset())
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise BadInput(f"{where}: {spec!r} is not a method. Give its name, or a mapping with 'name' and its settings")
    settings = {key: value for key, value in spec.items() if key != "name"}
    return draft(load(kind, spec["name"]), settings, where=f"{where} {spec['name']}")


def describe(method: Any) -> dict[str, Any]:
    """The method back as {"name": ..., settings}: what `build` takes, and what the record keeps."""
    return {"name": name_of(method), **plain(method)}


def name_of(method: Any) -> str:
    """The name a user types: the module's last part, or the file of a method given by path."""
    module: str = type(method).__module__
    return module.removeprefix("letheon_path:") if module.startswith("letheon_path:") else module.rsplit(".", 1)[-1]


def _kind_of(method: Any) -> str | None:
    """The kind whose folder holds an instance's module; None for files of one's own."""
    folder = type(method).__module__.rpartition(".")[0].removeprefix("letheon.").replace(".", "/")
    return next((kind for kind, known in KINDS.items() if known == folder), None)


def _locate(kind: str, name: str) -> Path:
    if kind not in KINDS:
        raise UnknownName(kind, KINDS, what="a kind of method")
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BadInput(
                f"{name}: no such file. A {kind} is a name ({', '.join(names(kind))}) or a path to a .py file"
            )
        return path.resolve()
    if name not in names(kind):
        raise UnknownName(name, names(kind), what=f"a {kind.replace('_', ' ')}", remedy="letheon methods")
    return _PACKAGE / KINDS[kind] / f"{name}.py"


def _import(path: Path) -> ModuleType:
    if path.is_relative_to(_PACKAGE):
        return importlib.import_module("letheon." + ".".join(path.relative_to(_PACKAGE).with_suffix("").parts))
    return _import_source(path, path.read_text(encoding="utf-8"))


@cache
def _import_source(path: Path, source: str) -> ModuleType:
    """A file of one's own as a module, by its text: Python's own cache takes a quick edit for the old file."""
    module = ModuleType(f"letheon_path:{path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their own module up while they are made
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _read_card(kind: str, path: Path) -> Card:
    return _parse_card(kind, path, path.read_text(encoding="utf-8"))


@cache
def _parse_card(kind: str, path: Path, source: str) -> Card:
    tree = ast.parse(source, filename=str(path))
    docstring = ast.get_docstring(tree) or ""
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and _is_settings(node)
    ]
    if len(classes) != 1:
        raise BadInput(f"{path}: holds {len(classes)} public frozen dataclasses; a {kind} is a file with exactly one")
    return Card(
        name=path.stem,
        kind=kind,
        summary=docstring.split("\n", 1)[0].strip(),
        source=_labelled(docstring, "Source"),
        checked_against=_labelled(docstring, "Checked against"),
        docstring=docstring,
        class_name=classes[0].name,
        settings=tuple(_settings(classes[0], tree, path)),
        path=path,
    )


def _is_settings(node: ast.ClassDef) -> bool:
    return any(
        "dataclass" in ast.unparse(decorator) and "frozen=True" in ast.unparse(decorator)
        for decorator in node.decorator_list
    )


def _labelled(docstring: str, label: str) -> str:
    """The text behind `label:`, up to the next label, a blank line or the end."""
    found = re.search(rf"{label}:\s*(.+?)(?=\s*(?:Source|Checked against):|\n\s*\n|\Z)", docstring, re.DOTALL)
    return " ".join(found.group(1).split()).rstrip(".") if found else ""


def _settings(node: ast.ClassDef, tree: ast.Module, path: Path) -> Iterator[Setting]:
    for position, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        if "ClassVar" in annotation:
            continue
        following = node.body[position + 1] if position + 1 < len(node.body) else None
        doc = ""
        if (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            doc = " ".join(following.value.value.split())
        default = ast.unparse(item.value) if item.value is not None else ""
        yield Setting(item.target.id, annotation, default, doc, _inner(annotation, tree, path))


def _inner(annotation: str, tree: ast.Module, path: Path) -> tuple[Setting, ...]:
    """The fields of a type that is a settings dataclass, of this file or of the one it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == annotation:
            return settings_in(path, annotation)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("letheon."):
            source = _PACKAGE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            if any(alias.name == annotation for alias in node.names) and source.is_file():
                return settings_in(source, annotation)
    return ()
