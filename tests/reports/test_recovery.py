from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest

from letheon.reports.recovery import attacks, columns_of, recovery, recovery_rows
from letheon.reports.wording import number


@pytest.fixture
def audit(fakes: ModuleType) -> Any:
    return fakes.with_attacks(fakes.make_audit())


def cell_of(audit: Any, condition: str, column: str) -> Any:
    return next(one for one in audit["cells"] if (one["condition"], one["column"]) == (condition, column))


def test_rows_of_one_attack_are_one_curve_in_the_order_of_their_values(audit: Any) -> None:
    audit["conditions"] = dict(reversed(audit["conditions"].items()))
    found = {attack.name: [value for value, _ in attack.rows] for attack in attacks(audit)}
    assert found["relearn"] == [5, 10, 20, 40] and found["prune"] == [0.01, 0.1, 0.5]
    assert sorted(found["templates"]) == ["affirmative suffix", "role play"]
    assert sorted(found["attacks of one row"]) == ["direction ablation", "logit lens"]


def test_two_rows_of_a_protocol_by_one_attack_are_two_curves(audit: Any) -> None:
    for at, steps in enumerate((5, 10)):
        audit["conditions"][f"relearn_texts_{steps}"] = audit["conditions"][f"relearn_{steps}"] | {"label": str(at)}
        audit["conditions"][f"again_{steps}"] = audit["conditions"][f"relearn_{steps}"]
    found = {attack.name: [condition for _, condition in attack.rows] for attack in attacks(audit)}
    assert found["relearn texts"] == ["relearn_texts_5", "relearn_texts_10"]
    assert found["relearn, again"] == ["again_5", "again_10"]
    assert found["relearn"] == ["relearn_5", "relearn_10", "relearn_20", "relearn_40"]


def test_an_older_audit_has_no_curves(fakes: ModuleType) -> None:
    assert attacks(fakes.make_audit()) == [] == recovery(fakes.make_audit(), "k")


def test_facts_are_drawn_and_whatever_else_was_measured_where_there_are_none(audit: Any) -> None:
    relearn = attacks(audit)[0]
    assert columns_of(audit, relearn) == ["forget_accuracy", "forget_accuracy_held_out"]
    for cell in audit["cells"]:
        if cell["column"].startswith("forget_accuracy"):
            cell.update(status="not measured", value=None)
    assert columns_of(audit, relearn) == ["forget_probability"]


def test_the_words_say_every_point_and_what_is_missing(audit: Any) -> None:
    words = recovery(audit, "k")[0].text_alternative
    first = words[words.index("Facts, trained") : words.index("Facts, other")]
    for steps in (5, 10, 20):
        cell = cell_of(audit, f"relearn_{steps}", "forget_accuracy")
        assert f"{number(cell['value'])} at {steps} (control {number(cell['control'])})" in first
    as_is = cell_of(audit, "as_is", "forget_accuracy")
    assert f"{number(as_is['value'])} as is" in first and "the original has 1.00" in first
    assert "1 row not measured: at 40." in first


def points_of(svg: str, colour: str, width: str) -> list[list[tuple[float, float]]]:
    """Polylines of a colour and width, a list for each `d`; a gap begins another M."""
    found = []
    for d, style in re.findall(r'<path d="([^"]+)"[^>]*style="([^"]+)"', svg):
        if f"stroke: var(--{colour})" in style and f"stroke-width: {width}" in style:
            found.append([(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", d)])
    return found


def test_the_drawn_line_is_the_cells_to_scale(audit: Any) -> None:
    """A second reading of the picture: heights are a linear function of the values, places of the steps."""
    svg = recovery(audit, "k")[0].svg
    line = next(points for points in points_of(svg, "subject", "1.6"))
    steps, values = [0, 5, 10, 20], [cell_of(audit, name, "forget_accuracy")["value"] for name in
                                     ("as_is", "relearn_5", "relearn_10", "relearn_20")]  # fmt: skip
    assert len(line) == 4, "no line leads to the row that was not measured"
    across = (line[-1][0] - line[0][0]) / (steps[-1] - steps[0])
    up = (line[-1][1] - line[0][1]) / (values[-1] - values[0])
    for (x, y), step, value in zip(line, steps, values, strict=True):
        assert x == pytest.approx(line[0][0] + across * step, abs=0.01)
        assert y == pytest.approx(line[0][1] + up * (value - values[0]), abs=0.01)
    assert up < 0 < across


def test_a_gap_in_the_middle_is_not_bridged(audit: Any) -> None:
    cell = cell_of(audit, "relearn_10", "forget_accuracy")
    cell.update(status="not measured", value=None, lower=None, upper=None, control=None)
    svg = recovery(audit, "k")[0].svg
    starts = [d for d in re.findall(r'<path d="([^"]+)"', svg) if d.count("M") == 2]
    assert starts, "the line begins again after the gap"
    assert svg.count(">not measured<") == 2 + 1


def test_names_have_dots_and_no_line(audit: Any) -> None:
    figure = recovery(audit, "k")[2]
    assert "role play" in figure.svg and "affirmative suffix" in figure.svg
    assert not [points for points in points_of(figure.svg, "subject", "1.6") if len(points) > 1]
    cell = cell_of(audit, "templates_role play", "forget_accuracy")
    assert f"{number(cell['value'])} under role play" in figure.text_alternative


def test_a_row_at_zero_itself_takes_the_place_of_as_is(audit: Any) -> None:
    audit["conditions"]["relearn_0"] = {**audit["conditions"].pop("relearn_5"), "value": 0}
    for cell in audit["cells"]:
        cell["condition"] = cell["condition"].replace("relearn_5", "relearn_0")
    rows = [row for row in recovery_rows(audit) if row["attack"] == "relearn" and row["column"] == "forget_accuracy"]
    assert [(row["at"], row["condition"]) for row in rows][:2] == [(0, "relearn_0"), (10, "relearn_10")]


def test_rows_are_the_cells_with_their_reasons(audit: Any) -> None:
    rows = [row for row in recovery_rows(audit) if row["attack"] == "relearn" and row["column"] == "forget_accuracy"]
    assert [row["at"] for row in rows] == [0, 5, 10, 20, 40]
    for row in rows:
        cell = cell_of(audit, row["condition"], "forget_accuracy")
        for name in ("status", "value", "lower", "upper", "control", "reason"):
            assert row[name] == cell.get(name)
    assert "budget exhausted" in rows[-1]["reason"] and rows[-1]["value"] is None


def test_values_far_apart_have_a_logarithmic_axis(audit: Any) -> None:
    ticks = re.findall(r">(as is|0\.01|0\.1|0\.5)</text>", recovery(audit, "k")[1].svg)
    assert ticks == ["as is", "0.01", "0.1", "0.5"] * 2
