"""Who was in the training data? True positives against false ones, from the scores of every item, as is.

    a threshold t flags whoever scores at least t     true positive rate: flagged members (the forget set) / members
                                                      false positive rate: flagged strangers / strangers
    area under the curve = AUC                        items of equal score are flagged together: a slope, ties 1/2
    at 1 % and 5 %                                    the best t that flags at most floor(fpr * strangers) strangers; of
                                                      fewer than 100 strangers 1 % means no false positive at all
An AUC near 0 is no deletion: the forgotten items stand out as less familiar than anything unknown (over-forgotten).

Source: Carlini et al. 2022, arXiv:2112.03570 (rates at low false positives).  Checked against: a slow count over all
thresholds; the area under the drawn points against the AUC of the cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from letheon.errors import NotMeasured
from letheon.numerics.familiarity import tpr_at_fpr
from letheon.reports.svg import PALETTE, Figure, canvas, keyed, render, style, titled
from letheon.reports.tables import find
from letheon.reports.wording import counted, heading, interval, is_number, name_of, number, percent

Audit = Mapping[str, Any]
RATES = (0.01, 0.05)
"""False positive rates at which the true positive rate is told."""
CUT = (
    "column", "model", "threshold", "false_positives", "strangers", "true_positives", "members", "false_positive_rate",
    "true_positive_rate",
)  # fmt: skip
"""What is known of a point of a curve."""
TABLES = {"subject": "audited model", "control": "control", "original": "original"}
_LOOKS: dict[str, dict[str, Any]] = {
    "original": {"color": PALETTE["original"], "lw": 1.2, "ls": ":"},
    "control": {"color": PALETTE["control"], "lw": 1.2, "ls": "--"},
    "subject": {"color": PALETTE["subject"], "lw": 1.7},
}
_PANELS = 3
_PANEL = 2.5
"""Inches, of a square panel."""


@dataclass(frozen=True)
class Curve:
    """Of one model, for one column."""

    members: tuple[float, ...]
    strangers: tuple[float, ...]
    points: tuple[tuple[float, int, int], ...]
    """(threshold, flagged strangers, flagged members) from the strictest threshold to the laxest."""

    @property
    def rates(self) -> list[tuple[float, float]]:
        """(false positive rate, true positive rate), from (0, 0) to (1, 1)."""
        sizes = len(self.strangers), len(self.members)
        return [(0.0, 0.0), *((false / sizes[0], true / sizes[1]) for _, false, true in self.points)]

    @property
    def area(self) -> float:
        """Under the drawn points, by trapezoids."""
        rates = self.rates
        return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(rates))

    def at(self, rate: float) -> tuple[float, float]:
        """(false, true positive rate) by the best threshold that flags at most this share of strangers."""
        most = int(rate * len(self.strangers) + 1e-9)
        _, false, true = max(
            [(0.0, 0, 0), *(point for point in self.points if point[1] <= most)], key=lambda point: point[2]
        )
        return false / len(self.strangers), true / len(self.members)


def curve(values: Sequence[float], member: Sequence[int]) -> Curve:
    """The curve of some scores, higher for what is more familiar; `member` is 1 for the forget set, 0 for strangers.

    Raises:
        NotMeasured: one of both sides is empty.
    """
    members = tuple(value for value, side in zip(values, member, strict=True) if side == 1)
    strangers = tuple(value for value, side in zip(values, member, strict=True) if side == 0)
    if not members or not strangers:
        raise NotMeasured(f"{counted(len(members), 'member')} and {counted(len(strangers), 'stranger')}")
    ordered = sorted(zip(values, member, strict=True), reverse=True)
    points: list[tuple[float, int, int]] = []
    false = true = 0
    for value, side in ordered:
        false, true = false + (side == 0), true + (side == 1)
        if points and points[-1][0] == value:
            points.pop()
        points.append((value, false, true))
    return Curve(members, strangers, tuple(points))


def curves_of(audit: Audit) -> dict[str, dict[str, Curve]]:
    """Column -> table -> curve, of the membership columns whose scores stand in the audit, as is."""
    found: dict[str, dict[str, Curve]] = {}
    for column, kind in audit.get("columns", {}).items():
        if kind.get("aggregate") != "auc":
            continue
        for table in TABLES:
            held = audit.get("scores", {}).get(table, {}).get("as_is", {}).get(column, {})
            if "values" in held and "asked" in held:  # else a reason, or a constant: the diagonal
                member = audit["asked"][held["asked"]]["member"]
                found.setdefault(column, {})[table] = curve(held["values"], member)
    return {column: tables for column, tables in found.items() if "subject" in tables}


def roc(audit: Audit, key: str) -> list[Figure]:
    """A panel a column, three a figure."""
    curves = curves_of(audit)
    columns = list(curves)
    chunks = [columns[start : start + _PANELS] for start in range(0, len(columns), _PANELS)]
    return [_figure(audit, {name: curves[name] for name in chunk}, f"{key}{at}") for at, chunk in enumerate(chunks, 1)]


def roc_rows(audit: Audit) -> list[dict[str, Any]]:
    """One row a point of every curve."""
    return [
        dict(
            zip(
                CUT,
                (column, table, threshold, false, strangers, true, members, false / strangers, true / members),
                strict=True,
            )
        )
        for column, tables in curves_of(audit).items()
        for table, one in tables.items()
        for strangers, members in [(len(one.strangers), len(one.members))]
        for threshold, false, true in one.points
    ]


def _figure(audit: Audit, curves: Mapping[str, Mapping[str, Curve]], key: str) -> Figure:
    width = 0.5 + len(curves) * (_PANEL + 0.5)
    with style(key):
        drawing, axes = canvas(
            width, _PANEL + 1.15, panels=len(curves), left=0.5, right=0.15, top=0.7, bottom=0.45, gap=0.5
        )
        for axis, (column, tables) in zip(axes, curves.items(), strict=True):
            _panel(axis, audit, column, tables)
        keyed(drawing, axes[0])
        axes[0].set_ylabel("members flagged", loc="bottom")
        svg = render(drawing, key)
    fewest = min(len(one.strangers) for tables in curves.values() for one in tables.values())
    too_few = [(round(1 / rate), percent(rate)) for rate in RATES if fewest < round(1 / rate)]
    exact = "".join(f"; with fewer than {count} strangers {rate} means no false positive" for count, rate in too_few)
    words = " ".join(_in_words(audit, column, tables) for column, tables in curves.items())
    return Figure(
        svg,
        f"Curves of membership, as is. {words}",
        "How many of the forget set an attacker finds, against how many strangers are flagged by mistake. On the "
        "diagonal nothing is to be seen; below it the forgotten stand out as unfamiliar. Circles: at 1 % and 5 % of "
        f"the strangers{exact}.",
    )


def _panel(axis: Any, audit: Audit, column: str, tables: Mapping[str, Curve]) -> None:
    head, sub = heading(audit, column)
    cell = find(audit, column, "as_is")
    auc = f"AUC {number(cell.get('value'))} {interval(cell.get('lower'), cell.get('upper'))}".rstrip()
    titled(axis, head, ", ".join([*([sub.removesuffix("AUC").rstrip(", ")] if sub else []), auc]))
    axis.plot([0, 1], [0, 1], color=PALETTE["rule"], lw=1)
    for name, look in _LOOKS.items():
        if name in tables:
            across, up = zip(*tables[name].rates, strict=True)
            axis.plot(across, up, label=TABLES[name], clip_on=False, **look)
    for rate in RATES:
        axis.plot(
            *tables["subject"].at(rate), "o", ms=5, mfc=PALETTE["paper"], mec=PALETTE["subject"], mew=1.2, clip_on=False
        )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_xlabel("strangers flagged", loc="right", labelpad=1)


def _in_words(audit: Audit, column: str, tables: Mapping[str, Curve]) -> str:
    """AUC with its interval, the rates at few false positives, the others' areas, and how to read it."""
    cell, mine = find(audit, column, "as_is"), tables["subject"]
    said = [f"{name_of(audit, column)}: AUC {number(cell.get('value'))} {bounds_in_words(cell)}".rstrip()]
    said += [_at_in_words(mine, rate) for rate in RATES]
    said += [f"the {TABLES[name]}'s AUC {number(one.area)}" for name, one in tables.items() if name != "subject"]
    sizes = f"{counted(len(mine.members), 'member')} and {counted(len(mine.strangers), 'stranger')}"
    return f"{'; '.join([*said, sizes, *reading(cell)])}."


def bounds_in_words(cell: Mapping[str, Any]) -> str:
    """The interval in words."""
    bounds = interval(cell.get("lower"), cell.get("upper"))
    return f"(95 % interval {bounds})" if bounds else ""


def _at_in_words(one: Curve, rate: float) -> str:
    """The true positive rate, and how many strangers it costs."""
    true = tpr_at_fpr(one.members, one.strangers, rate)
    most = int(rate * len(one.strangers) + 1e-9)
    limit = (
        f"at {percent(rate)} false positives"
        if most
        else f"with no false positive ({counted(len(one.strangers), 'stranger')} are too few for {percent(rate)})"
    )
    return f"{percent(true)} of the members found {limit}"


def reading(cell: Mapping[str, Any]) -> list[str]:
    """What the number means, where it is certain to mean something."""
    if cell.get("judgement") == "over-forgotten" or (is_number(cell.get("upper")) and cell["upper"] < 0.5):
        return ["over-forgotten: the forgotten are less familiar than strangers, and can be told from them by that"]
    if is_number(cell.get("lower")) and cell["lower"] > 0.5:
        return ["the forgotten are still more familiar than strangers"]
    return []
