"""Protocols: which cells a verdict needs, their margins, and how sure it must be. Versioned files, never edited.

Source: this project.  Checked against: the shipped files; an unknown name, column or condition is refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from letheon.errors import BadInput, UnknownName
from letheon.methods import build, load
from letheon.settings import fill

_FOLDER = Path(__file__).parent / "protocols"


@dataclass(frozen=True, kw_only=True)
class RequiredCells:
    """Cells that a verdict needs, with one margin."""

    columns: list[str]
    conditions: list[str]
    margin: float
    side: Literal["above", "either"]


@dataclass(frozen=True, kw_only=True)
class ConvictingCells:
    """Cells that convict where more is certainly known than the control knows, and that acquit nobody.

    For words that a model may not understand: silence shows nothing there, and an answer shows all. They share the
    level of what convicts, and need not be measured.
    """

    columns: list[str]
    conditions: list[str]


@dataclass(frozen=True, kw_only=True)
class RequiredUtility:
    """Utilities that may fall by at most a margin."""

    columns: list[str]
    margin: float


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Columns that need generation, and the conditions under which it is done."""

    columns: list[str]
    conditions: list[str]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A protocol as its file says it."""

    name: str
    level: float
    resamples: int
    limits: dict[str, int]
    conditions: dict[str, Any]
    probes: list[Any]
    """Names, or a name with settings."""
    required: list[Any]
    utility: list[Any]
    generated: Any
    acquit: Literal["shared", "each"] = "shared"
    """At which level a required cell must be within its margin: level / m, or level for each of them. Whoever lets a
    model pass although one cell is beyond its margin has been wrong about that very cell, so that "each" errs with at
    most `level` as well, however many cells there are (an intersection-union test)."""
    convicting: list[Any] = field(default_factory=list)
    """Cells that can only convict."""
    sha256: str = ""
    cells: dict[tuple[str, str], RequiredCells] = field(default_factory=dict)
    """(condition, column) -> what is required of it."""

    @property
    def convicts(self) -> list[tuple[str, str]]:
        """(condition, column) of the cells that can only convict."""
        return [(at, column) for rule in self.convicting for at in rule.conditions for column in rule.columns]

    def said(self, resamples: int, seed: int) -> str:
        """Its name; with another number of resamples or another seed it is not quite the protocol any more.

        Whoever may choose the seed may choose the verdict of a case near a bound, so a reader is told.
        """
        odd = [f"{resamples} resamples"] if resamples != self.resamples else []
        odd += [f"seed {seed}"] if seed != 0 else []
        return f"{self.name} (with {' and '.join(odd)}, for trying out)" if odd else self.name

    @property
    def said_of_convicting(self) -> dict[str, list[dict[str, str]]]:
        """For a file: the cells that can only convict; nothing of a protocol that has none."""
        cells = [{"condition": at, "column": column} for at, column in self.convicts]
        return {"convicting": cells} if cells else {}

    def as_plain(self, m: int) -> dict[str, Any]:
        """For audit.json. `m`: how many cells the verdict rests on."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "level": self.level,
            "m": m,
            "required": [
                {"condition": at, "column": column, "margin": rule.margin, "side": rule.side}
                for (at, column), rule in self.cells.items()
            ],
            **self.said_of_convicting,
            "utility": [{"column": column, "margin": rule.margin} for rule in self.utility for column in rule.columns],
        }

    def margin_of_utility(self, column: str) -> float | None:
        """How far a column may fall; None where it is not required."""
        return next((rule.margin for rule in self.utility if column in rule.columns), None)


def names() -> list[str]:
    """The protocols that are written down."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_protocol(name: str) -> Protocol:
    """A protocol by name. Raises UnknownName with the nearest one."""
    if name not in names():
        raise UnknownName(name, names(), what="a protocol")
    text = (_FOLDER / f"{name}.yaml").read_bytes()
    raw: Mapping[str, Any] = yaml.safe_load(text)
    where = f"protocol {name}"
    required = [fill(RequiredCells, entry, where=where) for entry in raw["required"]]
    ready = {
        **raw,
        "required": required,
        "utility": [fill(RequiredUtility, entry, where=where) for entry in raw["utility"]],
        "convicting": [fill(ConvictingCells, entry, where=where) for entry in raw.get("convicting", ())],
        "generated": fill(Generated, raw["generated"], where=where),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    protocol = fill(Protocol, ready, where=where)
    problems: list[str] = []
    for rule in required:
        for condition in rule.conditions:
            for column in rule.columns:
                if (condition, column) in protocol.cells:
                    problems.append(f"{where}: {column} under {condition} is required twice")
                protocol.cells[condition, column] = rule
    twice = [cell for cell, count in Counter([*protocol.cells, *protocol.convicts]).items() if count > 1]
    problems += [f"{where}: {column} under {condition} is to convict twice" for condition, column in twice]
    if problems := [*problems, *_unknown(protocol, where)]:
        raise BadInput(problems)
    return protocol


def _unknown(protocol: Protocol, where: str) -> list[str]:
    """Conditions and columns that are named and not there: a required cell that is never made would be passed over."""
    judging = [*protocol.cells, *protocol.convicts]
    columns = {name: column for spec in protocol.probes for name, column in build("probe", spec).columns.items()}
    named = {column: "required" for _, column in judging}
    named |= {column: "utility" for rule in protocol.utility for column in rule.columns}
    named |= dict.fromkeys(protocol.generated.columns, "generated")
    conditions = {condition for condition, _ in judging} | set(protocol.generated.conditions)
    return [
        *(
            f"{where}: {name!r} under {why} is no column of its probes"
            for name, why in named.items()
            if name not in columns
        ),
        *(
            f"{where}: {name!r} is none of its conditions"
            for name in sorted(conditions)
            if name not in protocol.conditions
        ),
        *(
            f"{where}: {name!r} cannot be required, and can only convict: whether a model that knows would be heard "
            "under it is not asked"
            for name in dict.fromkeys(condition for condition, _ in protocol.cells)
            if getattr(
                load("condition", protocol.conditions.get(name, {}).get("name", "as_is")), "only_convicts", False
            )
        ),
        *(
            f"{where}: {name!r} cannot be required: more of it than the control has is no sign of knowledge"
            for name in dict.fromkeys(column for _, column in judging)
            if name in columns and columns[name].about == "forget" and columns[name].better != "low"
        ),
        *(
            f"{where}: {name!r} cannot be required: utility has no control, and is compared with the original"
            for name in dict.fromkeys(column for _, column in judging)
            if name in columns and columns[name].about == "utility"
        ),
        *(
            f"{where}: utility {name!r} cannot be compared by how far it fell (higher must be better)"
            for rule in protocol.utility
            for name in rule.columns
            if name in columns and (columns[name].about, columns[name].better) != ("utility", "high")
        ),
    ]
