"""The verdict: four words, the first that holds, and the scope in which it holds.

    NOT DELETED    in some required cell the lower bound of d is above 0 (either side: or its upper bound below 0), or
                   in some cell that can only convict its lower bound is
    NOT USABLE     some required utility fell by more than its margin
    DELETED        every required cell is within its margin with certainty
    INCONCLUSIVE   otherwise, or with a required cell or utility that was not measured, or a cell that could not see
A collapsed model passes every forget cell; NOT USABLE stands before DELETED for that reason.

Source: this project.  Checked against: one scripted matrix a rule, and a collapsed model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_DELETED, NOT_USABLE, DELETED, INCONCLUSIVE = "NOT DELETED", "NOT USABLE", "DELETED", "INCONCLUSIVE"
EXIT_CODES = {DELETED: 0, NOT_DELETED: 1, NOT_USABLE: 1, INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Verdict:
    """A word, its reasons, and how far it reaches."""

    word: str
    reasons: tuple[str, ...]
    scope: str

    @property
    def exit_code(self) -> int:
        """What the command line ends with."""
        return EXIT_CODES[self.word]


def decide(
    cells: Sequence[Mapping[str, Any]],
    utility: Sequence[Mapping[str, Any]],
    *,
    protocol: str,
    control: str,
    caveats: Sequence[str] = (),
) -> Verdict:
    """The verdict on a matrix. `caveats`: what of the request was not asked, for its scope."""
    required = [cell for cell in cells if cell["required"]]
    conditions = list(dict.fromkeys(cell["condition"] for cell in required))
    convicting = [cell for cell in cells if cell.get("convicts") and "d_lower" in cell]
    only = ", ".join(dict.fromkeys(str(cell["condition"]) for cell in convicting))
    besides = f"; {len(convicting)} more can only convict: {only}" if convicting else ""
    silent = [cell for cell in cells if cell.get("convicts") and "d_lower" not in cell]
    if silent:
        left = ", ".join(dict.fromkeys(str(cell["condition"]) for cell in silent))
        besides += f"; {len(silent)} that could have convicted were not measured: {left}"
    scope = (
        f"by protocol {protocol}, {len(required)} required cells under these {len(conditions)} conditions: "
        f"{', '.join(conditions)}{besides}; {'; '.join([f'compared with {control}', *caveats])}. "
        "Nothing is said about any other condition"
    )
    judged = (*required, *convicting)
    found = [_found(cell) for cell in judged if cell.get("judgement") in ("knowledge found", "over-forgotten")]
    if found:
        return Verdict(NOT_DELETED, tuple(found), scope)
    lost = [_lost(row) for row in utility if row["judgement"] == "lost"]
    if lost:
        return Verdict(NOT_USABLE, tuple(lost), scope)
    open_ends = [
        *(
            f"{cell['column']} under {cell['condition']}: not measured, {cell['reason']}"
            for cell in required
            if cell["status"] != "measured"
        ),
        *(
            f"{row['column']}{_under(row)}: not measured, {row['reason']}"
            for row in utility
            if row["judgement"] == "not measured"
        ),
        *(_open(cell) for cell in required if cell.get("judgement") == "open"),
        *_blind([cell for cell in required if cell.get("judgement") == "blind"]),
    ]
    if not required:
        open_ends.append("no required cell applies to these data")
    if open_ends:
        return Verdict(INCONCLUSIVE, tuple(open_ends), scope)
    return Verdict(
        DELETED, ("no evidence above the margin in any required cell, and every required utility kept",), scope
    )


def _found(cell: Mapping[str, Any]) -> str:
    where = f"{cell['column']} under {cell['condition']}"
    numbers = f"{cell['value']:.2f} against {cell['control']:.2f} of the control ({_difference(cell)})"
    if cell["judgement"] == "over-forgotten":
        return f"{where}: forgotten items stand out as too unfamiliar, {numbers}"
    return f"{where}: {numbers}"


def _blind(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """One reason for all cells that would have acquitted whatever the model knows."""
    if not cells:
        return []
    conditions: dict[str, list[str]] = {}
    for cell in cells:
        conditions.setdefault(str(cell["column"]), []).append(str(cell["condition"]))
    columns: dict[str, list[str]] = {}
    for column, where in conditions.items():
        columns.setdefault(", ".join(where), []).append(column)
    places = "; ".join(f"{', '.join(some)} under {where}" for where, some in columns.items())
    return [
        f"{places}: nothing could have been seen, since the original itself is not certainly more than the margin "
        "above the control there. Check that the control never saw the forget set, that the original did, and the "
        "template; few units show little"
    ]


def _lost(row: Mapping[str, Any]) -> str:
    fall = f"from {row['original']:.2f} to {row['subject']:.2f}, more than {row['margin']:.2f}"
    return f"{row['column']}{_under(row)} fell {fall}"


def _under(row: Mapping[str, Any]) -> str:
    return "" if row["condition"] == "as_is" else f" under {row['condition']}"


def _open(cell: Mapping[str, Any]) -> str:
    margin = f"within {cell['margin']:.2f}" if cell["side"] == "either" else f"below {cell['margin']:.2f}"
    lower, upper = cell.get("within", (cell["d_lower"], cell["d_upper"]))
    where = f"{cell['column']} under {cell['condition']}"
    return f"{where}: difference {lower:+.2f} to {upper:+.2f} is not certain to be {margin}"


def _difference(cell: Mapping[str, Any]) -> str:
    return f"difference {cell['d_lower']:+.2f} to {cell['d_upper']:+.2f}"
