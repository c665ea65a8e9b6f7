from __future__ import annotations

from types import ModuleType

from letheon.reports.terminal import WIDTH, table
from letheon.reports.wording import number


def test_every_line_fits_and_numbers_stand_below_one_another(fakes: ModuleType) -> None:
    audits = [(kind * 20, fakes.make_audit(kind)) for kind in fakes.KINDS]
    lines = table(audits).splitlines()
    assert max(map(len, lines)) <= WIDTH
    rows = lines[4 : 4 + len(audits)]
    points = [[place for place, letter in enumerate(row) if letter == "." and row[place + 1].isdigit()] for row in rows]
    assert len(points[0]) == 8 and all(found == points[0] for found in points)


def test_each_value_is_the_audits_with_its_mark(fakes: ModuleType) -> None:
    audit = fakes.make_audit("sham")
    row = table([("sham", audit)]).splitlines()[4].split()
    cells = {(cell["column"], cell["condition"]): cell for cell in audit["cells"]}
    assert row[:3] == ["sham", "NOT", "DELETED"]
    assert row[3] == number(cells["forget_accuracy", "as_is"]["value"])
    assert row[5] == number(cells["forget_accuracy", "int4_row"]["value"]) + "*"
    assert row[7] == number(cells["membership_questions", "as_is"]["value"]) + "?"


def test_lost_utility_is_marked(fakes: ModuleType) -> None:
    row = table([("ga", fakes.make_audit("ga"))]).splitlines()[4].split()
    assert row[1:3] == ["NOT", "USABLE"] and row[-3:] == ["0.03*", "0.02*", "0.01*"]


def test_the_original_and_the_control_head_the_table_where_they_are_shared(fakes: ModuleType) -> None:
    one, other = fakes.make_audit("gate"), fakes.make_audit("ga")
    assert table([("a", one), ("b", other)]).splitlines()[2].split()[:3] == ["the", "original", "1.00"]
    other["models"]["original"]["sha256"] = "7" * 64
    assert "the original" not in table([("a", one), ("b", other)])


def test_what_was_not_measured_is_a_dash_and_no_verdict_is_none(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate", missing={("int4_row", "forget_accuracy"): "why"})
    audit["verdict"] = None
    row = table([("run", audit)]).splitlines()[4].split()
    assert row[1] == "none" and row[4] == "-"


def test_no_audits_make_a_table_without_rows() -> None:
    assert table([]).splitlines()[1].split()[0] == "run"
