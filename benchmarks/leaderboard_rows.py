"""What is read out of leaderboard.json: a row's cells, how far each is from the control, figures over worlds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = {
    "forget_accuracy": "facts, trained wordings",
    "forget_accuracy_held_out": "facts, other wordings",
    "verbatim": "texts word by word",
    "membership_questions": "membership, questions",
    "membership_texts": "membership, texts",
}
FACTS = ("forget_accuracy", "forget_accuracy_held_out")
CONDITIONS = {
    "as_is": "as it is",
    "int8": "int8",
    "int4_row": "int4, row",
    "int4_group32": "int4, 32",
    "fp4": "fp4",
    "nf4": "nf4",
}
UTILITIES = {
    "retain_accuracy": "retained facts",
    "retain_accuracy_held_out": "their other wordings",
    "general_accuracy": "general facts",
}
Row = Mapping[str, Mapping[str, Any]]
"""World -> what was found there."""


def cells(one: Mapping[str, Any], columns: Iterable[str] = COLUMNS) -> list[Mapping[str, Any]]:
    """The required cells of some columns."""
    wanted = set(columns)
    return [cell for cell in one.get("cells", []) if cell["column"] in wanted]


def excess(cell: Mapping[str, Any]) -> float:
    """How far a cell is from the control to the side that counts, in margins."""
    away = abs(cell["d"]) if cell["side"] == "either" else cell["d"]
    return float(away / cell["margin"])


def worst(row: Row) -> tuple[str, Mapping[str, Any]] | None:
    """World and required cell that is farthest from the control."""
    found = [(world, cell) for world, one in row.items() for cell in cells(one)]
    return max(found, key=lambda pair: excess(pair[1])) if found else None


def spread(values: Sequence[float], *, sign: str = "") -> str:
    """A mean, and the smallest and the largest value where there are several."""
    if not values:
        return "not measured"
    middle = without_sign_of_zero(f"{statistics.fmean(values):{sign}.2f}")
    ends = [without_sign_of_zero(f"{end:{sign}.2f}") for end in (min(values), max(values))]
    return middle if len(values) == 1 else f"{middle} ({ends[0]} to {ends[1]})"


def without_sign_of_zero(number: str) -> str:
    """A number as it is shown; 0.00 rather than -0.00 or +0.00."""
    return number[1:] if number.strip("+-0.") == "" and number[0] in "+-" else number


def values(row: Row, column: str, figure: str) -> list[float]:
    """A figure of a column as the file is, world by world."""
    return [cell[figure] for one in row.values() for cell in cells(one, [column]) if cell["condition"] == "as_is"]


def falls(row: Row, column: str) -> list[float]:
    """How far a utility fell, world by world."""
    return [
        lost["fall"]
        for one in row.values()
        for lost in one.get("utility", [])
        if lost["column"] == column and "fall" in lost
    ]


def presets_of(found: Mapping[str, Any]) -> dict[str, Row]:
    """The rows that are presets."""
    return {name: row for name, row in found["rows"].items() if name in found["sweep"]["chosen"]}
