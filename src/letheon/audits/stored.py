"""Tables of scores as plain data, and back: who was asked stands once, by a name that gives nobody away.

    asked    [{"items": [...], "units": [...], "member": [...] for an auc}, ...]
    scores   table -> condition -> column -> {"asked": number, "values": [...]}, or {"not_measured": why},
             or {"constant": 0.5} for strangers against strangers
The same people are asked under every condition, so their names would otherwise be most of the file.

Source: this project.  Checked against: a round trip; no name in what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from letheon.audits.columns import Scores
from letheon.audits.matrix import HALF, Answer, Table
from letheon.errors import NotMeasured

Rows = dict[str, dict[str, Answer]]
"""condition -> column -> scores, or why there are none."""


def to_plain(tables: Mapping[str, Table], named: Callable[[str], Any]) -> dict[str, Any]:
    """`asked` and `scores` of some tables.

    Args:
        tables: name -> rows.
        named: item or unit -> what stands for it in the file, different for different ones.
    """
    asked: list[dict[str, Any]] = []
    numbers: dict[Any, int] = {}
    known: dict[str, Any] = {}

    def name(text: str) -> Any:
        if text not in known:
            known[text] = named(text)
        return known[text]

    def number(scores: Scores) -> int:
        members = None if scores.member is None else tuple(scores.member)
        key = (tuple(scores.items), tuple(scores.units), members)
        if key not in numbers:
            numbers[key] = len(asked)
            entry: dict[str, Any] = {"items": [name(item) for item in scores.items]}
            entry["units"] = [name(unit) for unit in scores.units]
            asked.append(entry if members is None else {**entry, "member": list(members)})
        return numbers[key]

    def answer(found: Answer) -> dict[str, Any]:
        if isinstance(found, NotMeasured):
            return {"not_measured": str(found)}
        if found is HALF:
            return {"constant": 0.5}
        return {"asked": number(found), "values": list(found.values)}

    scores = {
        table: {condition: {column: answer(found) for column, found in row.items()} for condition, row in rows.items()}
        for table, rows in tables.items()
    }
    return {"asked": asked, "scores": scores}


def from_plain(held: Mapping[str, Any], named: Callable[[Any], str] = str) -> dict[str, Rows]:
    """The tables back. `named` turns a name in the file into the item or unit again.

    Raises:
        KeyError, IndexError, TypeError, ValueError: `held` is not what `to_plain` gives.
    """
    asked = [
        ([named(item) for item in entry["items"]], [named(unit) for unit in entry["units"]], entry.get("member"))
        for entry in held["asked"]
    ]

    def answer(found: Mapping[str, Any]) -> Answer:
        if "not_measured" in found:
            return NotMeasured(str(found["not_measured"]))
        if "constant" in found:
            return HALF
        items, units, member = asked[found["asked"]]
        values = [float(value) for value in found["values"]]
        if not len(items) == len(units) == len(values) == len(member or values):
            raise ValueError(f"{len(values)} values for {len(items)} items")
        return Scores(items, units, values, member)

    return {
        table: {condition: {column: answer(found) for column, found in row.items()} for condition, row in rows.items()}
        for table, rows in held["scores"].items()
    }
