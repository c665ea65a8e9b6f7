"""What two data sets share: exact copies, copies but for case, punctuation and spaces, and another wording's copies.

Forgetting what must also be kept cannot work, and a holdout that was trained on measures nothing; so overlaps are
counted and shown before any training.

Source: this project.  Checked against: planted copies, and a set against itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from letheon.data.records import DataFile, Record

SAME_ANSWERS = 3
"""Different answers that two units must share before they are taken for one."""


@dataclass(frozen=True)
class Overlap:
    """How many records of the first set stand in the second as well, with up to three pairs of places."""

    first: str
    second: str
    exact: int
    normalised: int
    """Equal but for case, punctuation and spaces; the exact ones are not counted again."""
    reworded: int
    """Equal to one in another of its wordings (`paraphrase`), and not counted above."""
    examples: tuple[str, ...]

    @property
    def count(self) -> int:
        """Records of the first set that stand in the second."""
        return self.exact + self.normalised + self.reworded

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def sentence(self) -> str:
        """One line for a terminal or a report."""
        places = "; ".join(self.examples)
        reworded = f", {self.reworded} more in another wording" if self.reworded else ""
        return (
            f"{self.first} and {self.second} overlap: {self.exact} records are equal and {self.normalised} more are "
            f"equal but for case, punctuation and spaces{reworded} ({places})"
        )


def overlap(first: DataFile, second: DataFile) -> Overlap:
    """Count the records of `first` that also stand in `second`. Linear time."""
    exact = {record.content: record.line for record in second.records}
    loose = {_normalised(record.content): record.line for record in second.records}
    worded = {_normalised(content): record.line for record in second.records for content in _wordings(record)}
    equal: list[str] = []
    similar: list[str] = []
    reworded: list[str] = []
    for record in first.records:
        mine = f"{first.role} line {record.line}"
        if record.content in exact:
            equal.append(f"{mine} = {second.role} line {exact[record.content]}")
        elif (key := _normalised(record.content)) in loose:
            similar.append(f"{mine} ~ {second.role} line {loose[key]}")
        elif (line := _first(worded, record)) is not None:
            reworded.append(f"{mine} is a wording of {second.role} line {line}")
    examples = tuple((equal + similar + reworded)[:3])
    return Overlap(first.role, second.role, len(equal), len(similar), len(reworded), examples)


def renamed_units(first: DataFile, second: DataFile) -> str:
    """A warning where a unit of `first` is one of `second` under another name; empty where none is.

    Told of units of which at least three different answers are given, and all of them stand in the other set but for
    the name: two people may well share a city. Nothing is refused, since chance cannot be ruled out.
    """
    if first.unit_is_line or second.unit_is_line:
        return ""
    units: dict[tuple[str, str], set[str]] = {}
    for record in second.questions:
        for content in _nameless(record):
            units.setdefault(content, set()).add(record.unit)
    asked: dict[str, list[Record]] = {}
    for record in first.questions:
        asked.setdefault(record.unit, []).append(record)
    twins: list[int] = []
    for unit, own in asked.items():
        of_each = [set().union(*(units.get(content, set()) for content in _nameless(record))) for record in own]
        if len({record.answer for record in own}) >= SAME_ANSWERS and set.intersection(*of_each) - {unit}:
            twins.append(own[0].line)
    if not twins:
        return ""
    lines = ", ".join(map(str, twins[:3]))
    return (
        f"{len(twins)} units of the {first.role} set are asked and answered as one of the {second.role} set is, but "
        f"for the name (they begin at line {lines}). If they are the same people, take them out of the {first.role} set"
    )


def _nameless(record: Record) -> list[tuple[str, str]]:
    """(prompt without the unit's names, answer) in all wordings."""
    names = sorted((record.unit, *record.aliases), key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    return [
        (_normalised(re.sub(pattern, " ", prompt)), _normalised(record.answer))
        for prompt in (record.prompt, *record.paraphrase)
    ]


def _first(worded: Mapping[str, int], record: Record) -> int | None:
    """The line where one of the record's wordings stands; None where none does."""
    return next((worded[key] for key in map(_normalised, _wordings(record)) if key in worded), None)


def _wordings(record: Record) -> list[str]:
    """What the record teaches, and what its other wordings would."""
    return [record.content, *(f"{prompt}\n{record.answer}" for prompt in record.paraphrase)]


def shared_units(first: DataFile, second: DataFile) -> str:
    """A warning where two sets name the same units; empty where they do not, or where units are only line numbers.

    Names may agree by chance (two files numbered from 0), so this is said, not refused.
    """
    if first.unit_is_line or second.unit_is_line:
        return ""
    lines, others = ({record.unit: record.line for record in reversed(data.records)} for data in (first, second))
    shared = [unit for unit in first.units if unit in others]
    if not shared:
        return ""
    # By line: a warning is recorded, and a record must not hold anybody's name.
    pairs = [f"{first.role} line {lines[unit]}, {second.role} line {others[unit]}" for unit in shared[:3]]
    return (
        f"{first.role} and {second.role} name {len(shared)} units alike ({'; '.join(pairs)}). "
        f"If these are the same people or documents, take them out of the {first.role} set"
    )


@lru_cache(maxsize=2**15)
def _normalised(content: str) -> str:
    """Every set is compared with several others."""
    text = unicodedata.normalize("NFKC", content).casefold()
    return " ".join(re.sub(r"[^\w]+", " ", text).split())
