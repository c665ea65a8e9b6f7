"""What an attack brings back: forgotten knowledge against how far it was driven, beside the control under the same.

    along a number (steps, shares)     curves; at 0 stands the model as it is, which nobody has attacked
    along names, or in one row         dots, one line a row
The model's line has its 95 % interval, the control's its points; the dotted line is the original as it is. A row that
was not measured is a gap, and is said.

Source: this project.  Checked against: the words and the drawn points against the cells; rows that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.reports.svg import PALETTE, Figure, canvas, keyed, render, style, titled
from letheon.reports.wording import counted, heading, is_number, label_of_condition, listed, name_of, number, shortened

Audit = Mapping[str, Any]
Cell = Mapping[str, Any]
FIRST = ("forget_accuracy", "forget_accuracy_held_out")
"""What is drawn where it was measured; else what there is about the forget set."""
POINT = (
    "attack", "along", "at", "condition", "column", "status", "value", "lower", "upper", "control", "original",
    "reason",
)  # fmt: skip
"""What is known of a point."""
MOST_PANELS = 4
_WIDTH = 9.6
_WIDE = 12
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""


@dataclass(frozen=True)
class Attack:
    """Rows of one attack, as they stand in the matrix."""

    name: str
    """As a reader knows it."""
    along: str
    """The field, such as "steps"; "" for attacks of one row."""
    rows: tuple[tuple[Any, str], ...]
    """(value, condition); of attacks of one row the value is the condition's label."""

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return all(is_number(value) for value, _ in self.rows)


def attacks(audit: Audit) -> list[Attack]:
    """Every attack of an audit with its rows: those along a field first, then all attacks of one row together."""
    found: dict[tuple[str, str, str], list[tuple[Any, str]]] = {}
    alone: list[tuple[Any, str]] = []
    for condition, said in audit.get("conditions", {}).items():
        if not said.get("attack"):
            continue
        if "along" not in said:
            alone.append((label_of_condition(audit, condition), condition))
            continue
        value = said["value"]
        # Two rows of the protocol may be one attack with other settings: their names differ before the value.
        stem = condition.removesuffix(f"_{value:g}" if is_number(value) else f"_{value}")
        found.setdefault((str(said["attack"]), stem, str(said["along"])), []).append((value, condition))
    curves = []
    for (attack, stem, along), rows in found.items():
        name = stem if stem.startswith(attack) else f"{attack}, {stem}"
        are_numbers = all(is_number(value) for value, _ in rows)
        curves.append(Attack(name.replace("_", " "), along, tuple(sorted(rows) if are_numbers else rows)))
    return [*curves, *([Attack("attacks of one row", "", tuple(alone))] if alone else [])]


def columns_of(audit: Audit, attack: Attack) -> list[str]:
    """The columns that are drawn: about the forget set, and measured in at least one row."""
    cells = _cells(audit)
    about = [name for name, column in audit.get("columns", {}).items() if column.get("about") == "forget"]
    measured = [name for name in about if any(is_number(_value(cells, row, name)) for _, row in attack.rows)]
    return [name for name in FIRST if name in measured] or measured[:MOST_PANELS]


def recovery(audit: Audit, key: str) -> list[Figure]:
    """A figure an attack of which something was measured."""
    shown = [(attack, columns) for attack in attacks(audit) if (columns := columns_of(audit, attack))]
    return [_figure(audit, attack, columns, f"{key}{at}") for at, (attack, columns) in enumerate(shown, start=1)]


def recovery_rows(audit: Audit) -> list[dict[str, Any]]:
    """One row a point of the figures; what was not measured has its reason."""
    cells = _cells(audit)
    return [
        {
            **{name: cells.get((condition, column), {}).get(name) for name in POINT},
            "attack": attack.name,
            "along": attack.along,
            "at": value,
            "condition": condition,
            "column": column,
            "original": _original(cells, column),
        }
        for attack in attacks(audit)
        for column in columns_of(audit, attack)
        for value, condition in _with_as_is(audit, attack)
    ]


def _cells(audit: Audit) -> dict[tuple[str, str], Cell]:
    return {(cell["condition"], cell["column"]): cell for cell in audit.get("cells", [])}


def _value(cells: Mapping[tuple[str, str], Cell], condition: str, column: str, what: str = "value") -> Any:
    return cells.get((condition, column), {}).get(what)


def _original(cells: Mapping[tuple[str, str], Cell], column: str) -> Any:
    """The original's own number; it was asked as it is only, so it is the same in every row."""
    return _value(cells, "as_is", column, "original")


def _with_as_is(audit: Audit, attack: Attack) -> list[tuple[Any, str]]:
    """The rows, and before them the model as it is; where a row stands at 0 itself, this one."""
    if not attack.is_numeric:
        return [(label_of_condition(audit, "as_is"), "as_is"), *attack.rows]
    return list(attack.rows) if any(value == 0 for value, _ in attack.rows) else [(0, "as_is"), *attack.rows]


# --- drawing


def _figure(audit: Audit, attack: Attack, columns: Sequence[str], key: str) -> Figure:
    rows, cells = _with_as_is(audit, attack), _cells(audit)
    draw = _curve if attack.is_numeric else _dots
    left, bottom = (0.5, 0.48) if attack.is_numeric else (2.3, 0.3)
    height = 2.45 if attack.is_numeric else 1.02 + 0.25 * len(rows)
    width = _WIDTH if len(columns) > 2 or not attack.is_numeric else 3.4 * len(columns) + 0.6
    with style(key):
        drawing, axes = canvas(
            width, height, panels=len(columns), left=left, right=0.15, top=0.72, bottom=bottom, gap=0.45
        )
        for axis, column in zip(axes, columns, strict=True):
            titled(axis, *heading(audit, column))
            _level(axis, _original(cells, column), is_upright=not attack.is_numeric)
            draw(axis, audit, rows, cells, column, is_first=axis is axes[0])
            if attack.is_numeric:
                axis.set_xlabel(attack.along.replace("_", " "), loc="right", labelpad=1)
        keyed(drawing, axes[0], shortened(attack.name, 40).capitalize())
        svg = render(drawing, key)
    how = f"along {attack.along.replace('_', ' ')}" if attack.along else "each in one row of the matrix"
    first = "at 0 the model as it is" if attack.is_numeric else "above them the model as it is"
    return Figure(
        svg,
        f"{attack.name.capitalize()}, {how}. " + " ".join(_in_words(audit, rows, cells, column) for column in columns),
        f"{attack.name.capitalize()}, {how}; {first}. The control is under the same attack: what it gains as well "
        "was taught or told by the attack and is no memory. The bars are 95 % intervals.",
    )


def _level(axis: Any, original: Any, *, is_upright: bool) -> None:
    if is_number(original):
        draw = axis.axvline if is_upright else axis.axhline
        draw(original, color=PALETTE["original"], lw=1.2, dashes=(1, 2), label="original, as is")


def _points(
    rows: Sequence[tuple[Any, str]], cells: Mapping[tuple[str, str], Cell], column: str, what: str
) -> list[tuple[int, float]]:
    """(place among the rows, number) of those that have one."""
    values = [(place, _value(cells, condition, column, what)) for place, (_, condition) in enumerate(rows)]
    return [(place, float(value)) for place, value in values if is_number(value)]


def _bounds(cell: Cell) -> tuple[float, float] | None:
    bounds = cell.get("lower"), cell.get("upper")
    return (float(cell["lower"]), float(cell["upper"])) if all(map(is_number, bounds)) else None


def _curve(
    axis: Any,
    audit: Audit,
    rows: Sequence[tuple[Any, str]],
    cells: Mapping[tuple[str, str], Cell],
    column: str,
    *,
    is_first: bool,
) -> None:
    ats = [float(value) for value, _ in rows]
    positive = [at for at in ats if at > 0]
    if positive and max(positive) >= _WIDE * min(positive):
        axis.set_xscale("symlog", linthresh=min(positive))
        axis.minorticks_off()
    axis.set_xticks(ats, ["as is" if condition == "as_is" else f"{value:g}" for value, condition in rows])
    axis.grid(True, axis="y")
    axis.update_datalim([(at, 0.0) for at in ats])  # the axis reaches to the last row, measured or not
    axis.autoscale_view(scaley=False)
    _limits(axis.set_ylim, audit, cells, column)
    for what, look in _LOOKS.items():
        points = _points(rows, cells, column, what)
        places = dict(points)
        # a gap where a row was not measured: no line may lead over what is not known
        axis.plot(ats, [places.get(place, float("nan")) for place in range(len(rows))], **look)
    for place, (_, condition) in enumerate(rows):
        cell = cells.get((condition, column), {})
        if not is_number(cell.get("value")):
            axis.text(
                ats[place],
                0.5,
                "not measured",
                color=PALETTE["muted"],
                size=7,
                rotation=90,
                ha="center",
                va="center",
                transform=axis.get_xaxis_transform(),
            )
        elif bounds := _bounds(cell):
            axis.plot([ats[place]] * 2, bounds, color=PALETTE["subject"], lw=1.3, alpha=0.75)


def _dots(
    axis: Any,
    audit: Audit,
    rows: Sequence[tuple[Any, str]],
    cells: Mapping[tuple[str, str], Cell],
    column: str,
    *,
    is_first: bool,
) -> None:
    axis.grid(True, axis="y")
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(
        range(len(rows)), [shortened(str(value), 36) for value, _ in rows] if is_first else [""] * len(rows)
    )
    axis.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axis.spines["left"].set_visible(False)
    _limits(axis.set_xlim, audit, cells, column)
    for what, look in _LOOKS.items():
        points = _points(rows, cells, column, what)
        axis.plot([value for _, value in points], [place for place, _ in points], **{**look, "ls": "none"})
    for place, (_, condition) in enumerate(rows):
        if bounds := _bounds(cells.get((condition, column), {})):
            axis.plot(bounds, [place] * 2, color=PALETTE["subject"], lw=1.3, alpha=0.75)


_LOOKS: dict[str, dict[str, Any]] = {
    "control": {
        "label": "control, under the same", "color": PALETTE["control"], "lw": 1.2, "ls": "--", "marker": "D", "ms": 4,
        "mfc": PALETTE["paper"],
    },
    "value": {"label": "audited model", "color": PALETTE["subject"], "lw": 1.6, "marker": "o", "ms": 5},
}  # fmt: skip


def _limits(set_limits: Any, audit: Audit, cells: Mapping[tuple[str, str], Cell], column: str) -> None:
    """From 0 to the largest possible value, or to what was found where there is none."""
    top = audit.get("columns", {}).get(column, {}).get("top", 1.0)
    if is_number(top):
        set_limits(-0.04 * top, 1.06 * top)


# --- words


def _in_words(audit: Audit, rows: Sequence[tuple[Any, str]], cells: Mapping[tuple[str, str], Cell], column: str) -> str:
    """Every point of a panel."""
    said, missing = [], []
    for value, condition in rows:
        cell = cells.get((condition, column), {})
        where = _where(value, condition)
        if not is_number(cell.get("value")):
            missing.append(where)
            continue
        control = f" (control {number(cell['control'])})" if is_number(cell.get("control")) else ""
        said.append(f"{number(cell['value'])} {where}{control}")
    original = _original(cells, column)
    ends = [f"{name_of(audit, column)}: {', '.join(said)}"]
    ends += [f"the original has {number(original)}"] if is_number(original) else []
    ends += [f"{counted(len(missing), 'row')} not measured: {listed(missing)}"] if missing else []
    return f"{'; '.join(ends)}."


def _where(value: Any, condition: str) -> str:
    if condition == "as_is":
        return "as is"
    return f"at {value:g}" if is_number(value) else f"under {value}"
