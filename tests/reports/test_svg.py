from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from letheon.reports import svg
from letheon.reports.figures import curves, distances
from letheon.reports.recovery import recovery
from letheon.reports.roc import roc
from letheon.reports.scatter import of_runs, trade_off

STYLE = (Path(svg.__file__).with_name("style.css")).read_text(encoding="utf-8")


def drawn(label: str, key: str = "k") -> str:
    with svg.style(key):
        figure, (axis,) = svg.canvas(3, 2, left=0.5, right=0.1, top=0.1, bottom=0.4)
        axis.plot([0, 1], [0, 1], "o-", color=svg.PALETTE["found"], clip_on=True)
        axis.set_title(label)
        return svg.render(figure, key)


def test_markup_and_formulas_in_a_label_stay_text() -> None:
    text = drawn('</svg><script>alert(1)</script> $x^2$ & "q" -->')
    assert '&lt;/svg&gt;&lt;script&gt;alert(1)&lt;/script&gt; $x^2$ &amp; "q" --&gt;' in text
    assert text.count("</svg>") == 1 and "<script" not in text


def test_nothing_of_a_whole_document_is_left() -> None:
    text = drawn("a")
    for part in (
        "xmlns",
        "<?xml",
        "DOCTYPE",
        "http",
        "<style",
        "metadata",
        "<!--",
        "xlink",
        "matplotlib",
        "font-family",
        "DejaVu",
    ):
        assert part not in text


def test_ids_begin_with_the_figures_own_and_all_are_used() -> None:
    text = drawn("a", "figure-7")
    ids = re.findall(r' id="([^"]+)"', text)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert ids and all(name.startswith("figure-7-") for name in ids)
    assert {first or second for first, second in used} == set(ids)


def test_the_same_drawing_gives_the_same_bytes() -> None:
    assert drawn("a") == drawn("a")


def test_text_keeps_the_size_it_was_drawn_with_at_full_width() -> None:
    assert '<svg viewBox="0 0 216 144" style="width:288px"' in drawn("a")


def test_size_and_weight_are_kept_of_a_font_in_either_form() -> None:
    assert (
        svg._font("font-size: 10px; font-family: 'DejaVu Sans', sans-serif; text-anchor: end")
        == "font-size: 10px; text-anchor: end"
    )
    assert (
        svg._font("font: bold 8.5px 'DejaVu Sans'; text-anchor: end")
        == "font-weight: 700; font-size: 8.5px; text-anchor: end"
    )
    assert svg._font("font: 8.5px 'DejaVu Sans'") == "font-size: 8.5px"


@pytest.mark.parametrize("kind", ["gate", "ga", "sham", "vague"])
def test_every_colour_is_the_pages(fakes: ModuleType, kind: str) -> None:
    audit = fakes.make_audit(kind)
    figures = [
        *distances(audit, "a"),
        *recovery(fakes.with_attacks(audit), "e"),
        *roc(fakes.with_scores(audit), "f"),
        trade_off(audit, "b"),
        of_runs([("x", audit), ("y", fakes.make_audit("sham"))], "c"),
        curves("1-forget", fakes.make_metrics(kind), "d"),
    ]
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)")
    for figure in figures:
        assert figure is not None
        assert not re.findall(r"#[0-9a-f]{6}\b|rgb\(|: (?:black|white|none\b.*fill: #)", figure.svg)
        for name in set(re.findall(r"var\(--(\w+)\)", figure.svg)):
            assert f"--{name}:" in light and f"--{name}:" in dark[: dark.index("* {")]


def test_a_figure_of_its_own_stands_alone_in_light_colours(fakes: ModuleType) -> None:
    (figure,) = (svg.Figure(drawn("a < b"), 'words & "more"', "caption <b>"),)
    text = svg.standalone(figure)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("width") == "216pt"
    assert [child.text for child in root[:2]] == ["caption <b>", 'words & "more"']
    assert "var(" not in text and "#b8400b" in text and "#ffffff" in text
    assert text.count("http") == 1 and "<script" not in text


def test_every_name_of_the_palette_has_its_own_code() -> None:
    assert len(set(svg.PALETTE.values())) == len(svg.PALETTE)
