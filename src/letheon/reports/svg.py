"""A matplotlib figure as SVG that may stand inside a page: no address, no fixed colour, no id of anybody else.

    colours   matplotlib is given a hex code for each name of the palette; in the SVG it becomes var(--name), so that
              the page decides, in the light, in the dark and on paper
    text      stays text, in the page's font, with markup escaped
    ids       begin with the figure's own, so that many figures can stand in one page
`standalone` makes a file of it, in the page's light colours. The same figure gives the same bytes.

Source: this project.  Checked against: byte equality, markup in labels, ids of two figures, a palette without a name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

PALETTE = {
    name: f"#0f1e{position:02x}"
    for position, name in enumerate(
        ("ink", "muted", "rule", "paper", "subject", "original", "control", "found", "clear", "open", "lost", "zone"),
        start=1,
    )
}
"""Name of a colour in the page's style -> a code that stands for it while matplotlib draws."""
_NAMES = {code: name for name, code in PALETTE.items()}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.titlecolor": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": PALETTE["rule"],
    "ytick.color": PALETTE["rule"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.6,
    "text.color": PALETTE["ink"],
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Figure:
    """A picture for the page."""

    svg: str
    """Markup that is safe to stand in a page."""
    text_alternative: str
    """What the picture says, for whoever does not see it."""
    caption: str


@contextmanager
def style(key: str) -> Iterator[None]:
    """Draw as the page wants it, whatever the user's own matplotlib settings are; `key` names the figure's ids."""
    import matplotlib

    everything: Any = {**dict(matplotlib.rcParamsDefault), **_STYLE, "svg.hashsalt": key, "backend": "svg"}
    with matplotlib.rc_context(everything):
        yield


def canvas(
    width: float,
    height: float,
    *,
    panels: int = 1,
    left: float,
    right: float,
    top: float,
    bottom: float,
    gap: float = 0.0,
) -> tuple[Any, list[Any]]:
    """A figure and its axes in one row, lengths in inches. Fitting the margins would take ten times as long."""
    from matplotlib.figure import Figure as Canvas

    drawing = Canvas(figsize=(width, height))
    each = (width - left - right - gap * (panels - 1)) / panels
    boxes = [(left + position * (each + gap), bottom, each, height - top - bottom) for position in range(panels)]
    return drawing, [
        drawing.add_axes((x / width, y / height, across / width, up / height)) for x, y, across, up in boxes
    ]


def titled(axis: Any, head: str, sub: str = "") -> None:
    """A panel's name in two lines that do not meet its neighbour's: what is too long goes on below, and ends in `…`."""
    room = int(72 * axis.get_figure().get_size_inches()[0] * axis.get_position().width / 5) + 4
    first, *rest = wrap(head, room) or [""]
    below = ", ".join([*([" ".join(rest)] if rest else []), *([sub] if sub else [])])
    axis.set_title(first, pad=15)
    axis.annotate(
        below if len(below) <= room + 4 else f"{below[: room + 3].rstrip()}…",
        (0, 1),
        xytext=(0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        color=PALETTE["muted"],
        size=7.5,
    )


def keyed(drawing: Any, axis: Any, title: str = "") -> None:
    """What the lines of an axis are, over the whole figure at the right, and the figure's name at the left."""
    width, height = drawing.get_size_inches()
    handles, labels = axis.get_legend_handles_labels()
    drawing.text(0.02 / width, 1 - 0.06 / height, title, color=PALETTE["ink"], weight="bold", size=9.5, va="top")
    drawing.legend(
        handles[::-1],
        labels[::-1],
        ncols=len(handles),
        loc="upper right",
        bbox_to_anchor=(1 - 0.1 / width, 1 - 0.04 / height),
        frameon=False,
        fontsize=7.5,
        handlelength=2.2,
        borderaxespad=0,
        borderpad=0,
    )


def render(figure: Any, key: str) -> str:
    """The figure as clean SVG. Call inside `style(key)`; `key` is a word of letters, digits and hyphens."""
    file = io.StringIO()
    figure.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    width, height = (72 * float(inches) for inches in figure.get_size_inches())
    return clean(file.getvalue(), key=key, width=width, height=height)


def clean(svg: str, *, key: str, width: float, height: float) -> str:
    """What a page needs of a whole SVG document of `width` x `height` points."""
    root = ElementTree.fromstring(svg)
    parts = [part for part in root if _name(part.tag) != "metadata" and not _is_style(part)]
    elements = [element for part in parts for element in part.iter()]
    used = {target for element in elements for value in element.attrib.values() for target in _targets(value)}
    for element in elements:
        element.tag = _name(element.tag)
        attributes = {_name(name): value for name, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({name: _value(name, value, key) for name, value in attributes.items()})
        element.text = element.text if (element.text or "").strip() else None  # else only line ends and indents
        element.tail = None
    body = "".join(ElementTree.tostring(part, encoding="unicode") for part in parts)
    # 4/3: a point is 4/3 of a CSS pixel, so that text has the size it was drawn with
    size = f'viewBox="0 0 {width:g} {height:g}" style="width:{width * 4 / 3:.0f}px"'
    return f'<svg {size} aria-hidden="true" focusable="false">{body}</svg>'


def standalone(figure: Figure) -> str:
    """The figure as a file of its own: light colours on white, with its words as title and description."""
    width, height = (float(part) for part in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure.svg)[0])
    body = figure.svg[figure.svg.index(">") + 1 :]
    colours = light_colours()
    body = re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}pt" '
        f'height="{height:g}pt" font-family="sans-serif" role="img">'
        f"<title>{escape(figure.caption)}</title><desc>{escape(figure.text_alternative)}</desc>"
        f'<rect width="{width:g}" height="{height:g}" fill="{colours["paper"]}"/>{body}\n'
    )


@cache
def light_colours() -> dict[str, str]:
    """Name of the palette -> hex code in the light, as the page's style has it."""
    light = Path(__file__).with_name("style.css").read_text(encoding="utf-8").partition("@media")[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))


def _name(tag: str) -> str:
    """A tag or attribute without its namespace: markup inside a page has none."""
    return tag.rpartition("}")[2]


def _is_style(part: Element) -> bool:
    """A style sheet inside a figure would apply to the whole page."""
    return any(_name(inner.tag) == "style" for inner in part.iter())


def _targets(value: str) -> list[str]:
    """The ids that an attribute points at: `#marker`, `url(#clip)`."""
    return [match[1] for match in re.finditer(r"(?:^|url\()#([^\s)]+)", value)]


def _value(name: str, value: str, key: str) -> str:
    """An attribute as the page needs it."""
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    if name == "clip-path":
        return value.replace("url(#", f"url(#{key}-", 1)
    if name == "d":
        return " ".join(value.split())
    return _colours(_font(value)) if name == "style" else value


def _colours(declarations: str) -> str:
    """Codes of the palette as variables of the page."""
    return re.sub(
        r"#[0-9a-f]{6}\b", lambda code: f"var(--{_NAMES[code[0]]})" if code[0] in _NAMES else code[0], declarations
    )


def _font(declarations: str) -> str:
    """Size and weight as drawn; the family is the page's."""
    declarations = re.sub(r"font-family:[^;]*;?\s*", "", declarations)
    return re.sub(r"font:([^;]*?)([\d.]+px)[^;]*", _shorthand, declarations).strip()


def _shorthand(found: re.Match[str]) -> str:
    """`font: bold 8px 'DejaVu Sans', ...`, as older versions write it."""
    weight = "font-weight: 700; " if re.search(r"bold|[6-9]00", found[1]) else ""
    return f"{weight}font-size: {found[2]}"
