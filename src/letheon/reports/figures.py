"""The figures of one run over conditions and over steps, each with words in its place.

    distances    d against its margin, one panel a probe, one row a condition
    curves       losses and looks of a training stage; an unbounded loss has an axis of its own, cut where it runs away

Source: this project.  Checked against: the words against the numbers; a loss of -1e30.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letheon.reports.svg import PALETTE, Figure, canvas, render, style, titled
from letheon.reports.wording import (
    JUDGEMENTS,
    counted,
    heading,
    is_number,
    label_of_condition,
    listed,
    name_of,
    number,
    shortened,
    signed,
)

Audit = Mapping[str, Any]
Cell = Mapping[str, Any]
Series = list[tuple[float, float]]
LOSS_CUT = 20.0
"""Nats a token. A loss beyond it says only that the model is gone, and would flatten what came before."""
_WIDTH = 9.6
"""Inches, of a figure over the whole column."""
_PANELS = 5
_MARKERS = {"knowledge found": "^", "over-forgotten": "v", "clear": "o", "open": "D"}


# --- distances to the control


def distances(audit: Audit, key: str) -> list[Figure]:
    """d with its one-sided bounds against its margin; the cells that may convict, or all where none may.

    A figure for up to five probes, with a row for every condition.
    """
    cells = distant_cells(audit)
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    chunks = [columns[start : start + _PANELS] for start in range(0, len(columns), _PANELS)]
    return [
        _distances(audit, [cell for cell in cells if cell["column"] in chunk], _range(cells), f"{key}{at or ''}")
        for at, chunk in enumerate(chunks)
    ]


def distant_cells(audit: Audit) -> list[Cell]:
    """The cells that are drawn."""
    cells = [cell for cell in audit.get("cells", []) if is_number(cell.get("d"))]
    return [cell for cell in cells if cell.get("required") or cell.get("convicts")] or cells


def _distances(audit: Audit, cells: Sequence[Cell], ends: tuple[float, float], key: str) -> Figure:
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    conditions = list(dict.fromkeys(cell["condition"] for cell in cells))
    labels = [label_of_condition(audit, name) for name in conditions]
    left = min(2.6, max(1.28, 0.1 + 0.064 * max(map(len, labels))))
    with style(key):
        height = 0.72 + 0.27 * len(conditions)
        drawing, axes = canvas(
            _WIDTH, height, panels=len(columns), left=left, right=0.12, top=0.42, bottom=0.3, gap=0.22
        )
        for axis, column in zip(axes, columns, strict=True):
            _distance_panel(axis, audit, [cell for cell in cells if cell["column"] == column], conditions)
            low, high = ends
            step = 0.5 if high - low > 1 else 0.25 if high - low > 0.5 else 0.1
            axis.set_xlim(low, high)
            axis.set_xticks([step * place for place in range(-10, 11) if low < step * place < high])
            if axis is axes[0]:
                axis.set_yticks(range(len(conditions)), [shortened(label, 40) for label in labels])
        svg = render(drawing, key)
    return Figure(
        svg,
        _distances_in_words(audit, cells),
        "With the bounds that the verdict rests on. 0 is the score of a model that never knew; the band is the margin. "
        "▲\u00a0knowledge found, ▼\u00a0stands out as too unfamiliar, ●\u00a0clear, ◆\u00a0open.",
    )


def _range(cells: Sequence[Cell]) -> tuple[float, float]:
    """One range for all panels: every bound, every margin, and some room."""
    ends = [cell.get(name) for cell in cells for name in ("d", "d_lower", "d_upper")]
    margins = [cell["margin"] * side for cell in cells if is_number(cell.get("margin")) for side in (-1, 1)]
    known = [float(value) for value in (*ends, *margins) if is_number(value) and value is not None]
    return max(-1.08, min(known) - 0.08), min(1.08, max(known) + 0.08)


def _distance_panel(axis: Any, audit: Audit, cells: Sequence[Cell], conditions: Sequence[str]) -> None:
    titled(axis, *heading(audit, cells[0]["column"]))
    margins = [cell for cell in cells if is_number(cell.get("margin"))]
    if margins:
        margin, is_two_sided = margins[0]["margin"], margins[0].get("side") == "either"
        axis.axvspan(-margin if is_two_sided else -2, margin, color=PALETTE["zone"], lw=0)
        for edge in (-margin, margin) if is_two_sided else (margin,):
            axis.axvline(edge, color=PALETTE["clear"], lw=0.9, dashes=(3, 2))
    axis.axvline(0, color=PALETTE["muted"], lw=0.8)
    for cell in cells:
        row, word = conditions.index(cell["condition"]), str(cell.get("judgement"))
        colour = PALETTE[JUDGEMENTS[word].tone] if word in JUDGEMENTS else PALETTE["muted"]
        if is_number(cell.get("d_lower")) and is_number(cell.get("d_upper")):
            axis.plot([cell["d_lower"], cell["d_upper"]], [row, row], color=colour, lw=1.6)
        axis.plot(
            [cell["d"]], [row], marker=_MARKERS.get(word, "o"), ms=6.5, color=colour, mec=PALETTE["paper"], mew=0.5
        )
    axis.set_ylim(len(conditions) - 0.4, -0.6)
    axis.set_yticks([])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axis.spines["left"].set_visible(False)


def _distances_in_words(audit: Audit, cells: Sequence[Cell]) -> str:
    words = [str(cell.get("judgement") or "not judged") for cell in cells]
    counts = listed([f"{words.count(word)} {word}" for word in dict.fromkeys(words)])
    farthest = sorted(cells, key=lambda cell: -abs(cell["d"]))[:3]
    named = "; ".join(
        f"{name_of(audit, cell['column'])} under {label_of_condition(audit, cell['condition'])} {signed(cell['d'])}"
        for cell in farthest
    )
    plot = f"Interval plot of the distance to the control in {counted(len(cells), 'cell')}"
    return f"{plot}: {counts}. Farthest from 0: {named}."


# --- training


def curves(label: str, lines: Sequence[Mapping[str, Any]], key: str) -> Figure | None:
    """Losses, each on an axis of its own, and what the looks between steps found."""
    losses = [name for name in ("forget_loss", "retain_loss") if _series(lines, name)]
    losses = losses or [name for name in ("loss",) if _series(lines, name)]
    looks = [name for name in _LOOKS if _series(lines, name)]
    panels = [*losses, *(["looks"] if looks else [])]
    if not panels:
        return None
    said = []
    with style(key):
        width = _WIDTH * len(panels) / 3
        drawing, axes = canvas(width, 2.0, panels=len(panels), left=0.42, right=0.12, top=0.3, bottom=0.42, gap=0.5)
        for name, axis in zip(panels, axes, strict=True):
            axis.grid(True, axis="y")
            axis.spines["left"].set_visible(False)
            axis.set_xlabel("step", loc="right", labelpad=1)
            said += (
                _looks_panel(axis, lines, looks) if name == "looks" else [_loss_panel(axis, _series(lines, name), name)]
            )
        svg = render(drawing, key)
    caption = f"Stage {label}. Losses in nats, each on an axis of its own."
    return Figure(svg, f"Training curves of {label}. {' '.join(said)}", caption)


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> Series:
    """(step, value) of the lines that have one; NaN and infinities are left out."""
    return [
        (float(line["step"]), float(line[name]))
        for line in lines
        if is_number(line.get(name)) and is_number(line.get("step"))
    ]


def _loss_panel(axis: Any, series: Series, name: str) -> str:
    title = name.replace("_", " ")
    steps, values = [step for step, _ in series], [value for _, value in series]
    shown = [min(LOSS_CUT, max(-LOSS_CUT, value)) for value in values]
    is_cut = shown != values
    axis.set_title(f"{title}, cut at ±{LOSS_CUT:g}" if is_cut else title)
    axis.plot(steps, shown, color=PALETTE["subject"], lw=0.7, alpha=0.4)
    axis.plot(steps, _smooth(shown), color=PALETTE["subject"], lw=1.6)
    low, high = min(shown), max(shown)
    room = 0.06 * max(high - low, 0.1)
    axis.set_ylim(low - room, high + room)
    ends = f"{title} from {number(values[0])} to {number(values[-1])} over {counted(len(values), 'step')}"
    return f"{ends}, between {number(min(values))} and {number(max(values))}{', drawn cut' if is_cut else ''}."


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window of a tenth of the steps around each."""
    reach = max(1, len(values) // 20)
    windows = [values[max(0, here - reach) : here + reach + 1] for here in range(len(values))]
    return [sum(window) / len(window) for window in windows]


_LOOKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "forget_accuracy": ("forget", "found", {"lw": 1.4, "marker": "o", "ms": 3}),
    "retain_accuracy": ("retain", "control", {"lw": 1.4, "marker": "s", "ms": 3}),
}
"""Figure of a look -> its name, colour and line."""


def _looks_panel(axis: Any, lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    axis.set_title("accuracy, at looks")
    axis.set_ylim(-0.05, 1.08)
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    said, ends = [], []
    for name in names:
        title, colour, line = _LOOKS[name]
        steps, values = zip(*_series(lines, name), strict=True)
        axis.plot(steps, values, color=PALETTE[colour], label=title, **line)
        ends.append(values[-1])
        said.append(f"{title} {number(values[0])} to {number(values[-1])} over {counted(len(values), 'look')}.")
    axis.legend(frameon=False, loc="center right", fontsize=7.5, handlelength=1.6, borderaxespad=0.1)
    return said
