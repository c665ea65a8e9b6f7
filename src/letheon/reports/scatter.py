"""What is left against what is kept, of one run or of several, with every point named.

    across    forget accuracy                upwards    mean of the utility accuracies that were measured
A name stands beside its point, moved up or down until it meets no other name and no point; then a thin line leads back.

Source: this project.  Checked against: the words against the numbers; names of ten runs at one place do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.reports.svg import PALETTE, Figure, canvas, render, style
from letheon.reports.tables import control_of, find
from letheon.reports.wording import counted, is_number, label_of_condition, name_of, number

Audit = Mapping[str, Any]
Point = tuple[float, float]
UTILITY = ("retain_accuracy", "retain_accuracy_held_out", "general_accuracy", "general_accuracy_held_out")
FORGET = "forget_accuracy"
NEAR = 0.06
"""Points nearer than this to the model as it is need no name of their own."""
COMES_BACK = 0.1
"""From here on an arrow shows what a condition gives back."""
_SPAN = ((-0.03, 1.06), (-0.03, 1.09))
"""Ends of both axes."""
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 7.2, 0.55, 0.1, 0.08, 0.45
_LETTER, _LINE = 4.7, 11.0
"""Size of a letter and height of a line in points, a little more than any usual font needs."""


@dataclass(frozen=True)
class Named:
    """A point with its name."""

    place: Point
    text: str
    colour: str


# --- one run


def trade_off(audit: Audit, key: str) -> Figure | None:
    """The original, the control, the model as it is and under each condition."""
    columns = utility_columns(audit)
    subject = point(audit, "as_is", columns)
    if subject is None:
        return None
    others = {name: place for name in _other_conditions(audit) if (place := point(audit, name, columns))}
    far = {name: place for name, place in others.items() if math.dist(place, subject) > NEAR}
    said = [f"the model as it is: {_spoken(subject)}"]
    said += [f"under {label_of_condition(audit, name)}: {_spoken(place)}" for name, place in others.items()]
    with style(key):
        drawing, axis = _axes(3.3)
        names = _ends_of_the_scale(axis, audit, columns, said)
        for place in others.values():
            axis.plot(*place, "o", ms=5, mfc="none", mec=PALETTE["subject"], mew=1)
        axis.plot(*subject, "o", ms=8, color=PALETTE["subject"], mec=PALETTE["paper"], mew=0.7)
        names += [Named(subject, "after, as is", "subject")]
        names += [Named(place, f"after, {label_of_condition(audit, name)}", "subject") for name, place in far.items()]
        _place(axis, names, height=3.3)
        svg = render(drawing, key)
    without = "; those without a name lie close to the model as it is" if len(far) < len(others) else ""
    return Figure(
        svg,
        f"Plot of forget accuracy against utility. {'; '.join(said)}.",
        f"Up and to the left is a deletion that costs nothing. {_upwards(audit, columns)} "
        f"Open circles: under the other conditions{without}.",
    )


# --- several runs


def of_runs(runs: Sequence[tuple[str, Audit]], key: str) -> Figure | None:
    """Every run as it is, and an arrow to the condition under which most comes back."""
    columns = [name for name in UTILITY if all(name in utility_columns(audit) for _, audit in runs)]
    known = [(name, audit, place) for name, audit in runs if (place := point(audit, "as_is", columns))]
    if not known:
        return None
    height = 3.0 + 0.16 * len(known)
    said: list[str] = []
    arrows: list[tuple[Point, Point]] = []
    with style(key):
        drawing, axis = _axes(height)
        first = known[0][1]
        names = _ends_of_the_scale(axis, first, columns, said) if _is_shared([audit for _, audit, _ in known]) else []
        for name, audit, place in known:
            words = f"{name}: {_spoken(place)}"
            back = _what_comes_back(audit, columns, place)
            if back is not None:
                condition, end = back
                _arrow(axis, place, end)
                arrows.append((place, end))
                names.append(Named(end, f"{name}, {label_of_condition(audit, condition)}", "found"))
                words += f", but under {label_of_condition(audit, condition)} {_spoken(end)}"
            axis.plot(*place, "o", ms=7, color=PALETTE["subject"], mec=PALETTE["paper"], mew=0.7)
            names.append(Named(place, name, "subject"))
            said.append(words)
        _place(axis, names, height=height, arrows=arrows)
        svg = render(drawing, key)
    return Figure(
        svg,
        f"Plot of forget accuracy against utility over {counted(len(known), 'run')}. {'; '.join(said)}.",
        "Up and to the left is a deletion that costs nothing; down is a damaged model, however little it answers. "
        f"An arrow leads to the condition under which more than {COMES_BACK:g} comes back. {_upwards(first, columns)}",
    )


def _what_comes_back(audit: Audit, columns: Sequence[str], as_is: Point) -> tuple[str, Point] | None:
    """The condition under which most is answered again, if that is much."""
    places = [(name, place) for name in _other_conditions(audit) if (place := point(audit, name, columns))]
    name, place = max(places, key=lambda entry: entry[1][0], default=("", as_is))
    return (name, place) if place[0] - as_is[0] > COMES_BACK else None


def _is_shared(audits: Sequence[Audit]) -> bool:
    """Whether all runs began at the same original."""
    return len({str((audit.get("models", {}).get("original") or {}).get("sha256")) for audit in audits}) == 1


def _arrow(axis: Any, start: Point, end: Point) -> None:
    arrow = {"arrowstyle": "->", "color": PALETTE["found"], "lw": 1.2, "shrinkA": 5, "shrinkB": 5}
    axis.annotate("", end, start, arrowprops=arrow)
    axis.plot(*end, "o", ms=6.5, mfc="none", mec=PALETTE["found"], mew=1.3)


# --- where the points lie


def utility_columns(audit: Audit) -> list[str]:
    """The utility accuracies that were measured of the model as it is."""
    there = {
        cell["column"]
        for cell in audit.get("cells", [])
        if cell["condition"] == "as_is" and is_number(cell.get("value"))
    }
    return [name for name in UTILITY if name in there]


def point(audit: Audit, condition: str, columns: Sequence[str], *, of: str = "value") -> Point | None:
    """(forget accuracy, mean utility) under a condition; None where one was not measured. of: value or original."""
    values = {cell["column"]: cell.get(of) for cell in audit.get("cells", []) if cell["condition"] == condition}
    wanted = [float(value) for name in (FORGET, *columns) if is_number(value := values.get(name)) and value is not None]
    if not columns or len(wanted) < 1 + len(columns):
        return None
    return wanted[0], sum(wanted[1:]) / len(columns)


def _control(audit: Audit, columns: Sequence[str]) -> tuple[float, float | None] | None:
    """The control's utility is its own only where it is another model, and was asked."""
    cell = find(audit, FORGET, "as_is")
    if not is_number(cell.get("control")):
        return None
    utility = [control_of(audit, find(audit, name, "as_is")) for name in columns]
    known = [value for value in utility if value is not None]
    return float(cell["control"]), sum(known) / len(known) if known and len(known) == len(utility) else None


def _other_conditions(audit: Audit) -> list[str]:
    return [name for name in dict.fromkeys(cell["condition"] for cell in audit["cells"]) if name != "as_is"]


# --- drawing


def _axes(height: float) -> tuple[Any, Any]:
    drawing, (axis,) = canvas(_WIDTH, height, left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM)
    axis.set_xlim(*_SPAN[0])
    axis.set_ylim(*_SPAN[1])
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axis.grid(True)
    axis.set_xlabel("forgotten facts still answered", loc="left")
    axis.set_ylabel("utility kept", loc="bottom")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return drawing, axis


def _ends_of_the_scale(axis: Any, audit: Audit, columns: Sequence[str], said: list[str]) -> list[Named]:
    """Draw the original and the control."""
    names = []
    original, control = point(audit, "as_is", columns, of="original"), _control(audit, columns)
    if original is not None:
        axis.plot(*original, "s", ms=7, color=PALETTE["original"], mec=PALETTE["paper"], mew=0.7)
        names.append(Named(original, "before (original)", "original"))
        said.append(f"the original: {_spoken(original)}")
    if control is not None and control[1] is None:
        axis.axvline(control[0], color=PALETTE["control"], lw=1, dashes=(3, 2))
        names.append(Named((control[0], 0.05), "never knew (control)", "control"))
        said.append(f"the control: {number(control[0])} of the forgotten facts answered")
    elif control is not None and control[1] is not None:
        place = (control[0], control[1])
        axis.plot(*place, "D", ms=6.5, color=PALETTE["control"], mec=PALETTE["paper"], mew=0.7)
        names.append(Named(place, "never knew (control)", "control"))
        said.append(f"the control: {_spoken(place)}")
    return names


def _spoken(place: Point) -> str:
    return f"{number(place[0])} of the forgotten facts answered, utility {number(place[1])}"


def _upwards(audit: Audit, columns: Sequence[str]) -> str:
    return f"Upwards: the mean of {'; '.join(name_of(audit, name).lower() for name in columns)}."


def _place(axis: Any, names: Sequence[Named], *, height: float, arrows: Sequence[tuple[Point, Point]] = ()) -> None:
    """Write every name where it is free."""
    width_pt, height_pt = 72 * (_WIDTH - _LEFT - _RIGHT), 72 * (height - _TOP - _BOTTOM)
    (x0, x1), (y0, y1) = _SPAN

    def to_points(place: Point) -> Point:
        return (place[0] - x0) / (x1 - x0) * width_pt, (place[1] - y0) / (y1 - y0) * height_pt

    def to_data(x: float, y: float) -> Point:
        return x / width_pt * (x1 - x0) + x0, y / height_pt * (y1 - y0) + y0

    places = [to_points(name.place) for name in names]
    on_arrows = [
        to_points((start[0] + part / 60 * (end[0] - start[0]), start[1] + part / 60 * (end[1] - start[1])))
        for start, end in arrows
        for part in range(1, 60)
    ]
    boxes = free_boxes([name.text for name in names], places, width_pt, height_pt, others=on_arrows)
    for name, place, box in zip(names, places, boxes, strict=True):
        is_left = box[0] < place[0]
        edge = (box[2] if is_left else box[0], (box[1] + box[3]) / 2)
        if abs(edge[1] - place[1]) > 1:
            axis.plot(*zip(name.place, to_data(*edge), strict=True), color=PALETTE["muted"], lw=0.5, zorder=1)
        axis.text(
            *to_data(*edge), name.text, color=PALETTE[name.colour], ha="right" if is_left else "left", va="center"
        )


Box = tuple[float, float, float, float]


def free_boxes(
    texts: Sequence[str], places: Sequence[Point], width: float, height: float, *, others: Sequence[Point] = ()
) -> list[Box]:
    """(left, bottom, right, top) of each name in points, in a frame of `width` x `height`; given out from the top down.

    others: points that no name may cover, besides the named ones.
    """
    taken: list[Box] = []
    found: dict[int, Box] = {}
    for position in sorted(range(len(texts)), key=lambda position: (-places[position][1], places[position][0])):
        box = _first_free(len(texts[position]) * _LETTER, places[position], (*places, *others), taken, width, height)
        taken.append(box)
        found[position] = box
    return [found[position] for position in range(len(texts))]


def _first_free(
    text_width: float, place: Point, others: Sequence[Point], taken: Sequence[Box], width: float, height: float
) -> Box:
    """The nearest place, level with the point or above or below it, that is inside the frame and empty."""
    is_left = place[0] + 16 + text_width > width
    box: Box = (0, 0, 0, 0)
    for step in range(120):
        lift = (step + 1) // 2 * (-1 if step % 2 else 1) * 2.0
        away = 8 if abs(lift) < 1 else 16
        left = place[0] - away - text_width if is_left else place[0] + away
        box = (left, place[1] + lift - _LINE / 2, left + text_width, place[1] + lift + _LINE / 2)
        if box[1] < 0 or box[3] > height:
            continue
        meets_name = any(box[0] < it[2] and it[0] < box[2] and box[1] < it[3] and it[1] < box[3] for it in taken)
        meets_point = any(
            box[0] - 4 < x < box[2] + 4 and box[1] - 3 < y < box[3] + 3 for x, y in others if (x, y) != place
        )
        if not meets_name and not meets_point:
            return box
    return box
