"""Cells that can only convict: words that a model may not understand acquit nobody, and an answer in them is an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letheon.audits import protocol as module
from letheon.audits.audit import audit
from letheon.audits.columns import Scores
from letheon.audits.matrix import Answer, Sources, make_cells, required_cells, utility_rows
from letheon.audits.protocol import ConvictingCells, Protocol, read_protocol
from letheon.audits.verdict import Verdict, decide
from letheon.audits.verify import verify
from letheon.errors import BadInput, NotMeasured
from tests.audits.conftest import QUICKLY, QUIET
from tests.audits.fakes import COLUMNS, hits, protocol
from tests.audits.mini import Mini
from tests.audits.test_verify import reseal

GIVEN: dict[str, Any] = {"seed": 0, "resamples": 2000}
NONE, SOME, ALL = hits(0, 60), hits(20, 60), hits(60, 60)
FOLDER = Path(module.__file__).parent / "protocols"


def rule(**changes: Any) -> Protocol:
    """Facts as they are are required; asked backwards they can only convict."""
    only = ConvictingCells(columns=["forget_accuracy"], conditions=["backwards"])
    return replace(protocol(), convicting=[only], **changes)


def judged(backwards: Answer, *, control: Answer = NONE, by: Protocol | None = None) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on a model that answers nothing as it is, and the cell asked backwards. The original is silent there."""
    by = by or rule()

    def rows(as_is: Answer, other: Answer) -> dict[str, dict[str, Answer]]:
        return {"as_is": {"forget_accuracy": as_is, "retain_accuracy": ALL}, "backwards": {"forget_accuracy": other}}

    sources = Sources(rows(NONE, backwards), rows(NONE, control), rows(ALL, NONE), is_paired=True)
    columns = {name: COLUMNS[name] for name in ("forget_accuracy", "retain_accuracy")}
    cells = make_cells(sources, columns, by, {}, **GIVEN)
    utility = utility_rows(sources.subject, sources.original, columns, by, **GIVEN)
    (cell,) = [one for one in cells if (one["condition"], one["column"]) == ("backwards", "forget_accuracy")]
    return decide(cells, utility, protocol="p", control="c"), cell


def test_an_answer_convicts_where_silence_acquits_nobody() -> None:
    verdict, cell = judged(SOME)
    assert verdict.word == "NOT DELETED" and cell["judgement"] == "knowledge found"
    assert verdict.reasons[0].startswith("forget_accuracy under backwards: 0.33 against 0.00 of the control")
    assert cell["convicts"] is True and cell["required"] is False


@pytest.mark.parametrize(
    ("backwards", "control"),
    [
        (NONE, NONE),
        (NONE, SOME),  # less than the control is no knowledge
        (SOME, SOME),
        (hits(1, 60), NONE),  # one hit of sixty is not certain
        (NotMeasured("no fact is one person's"), NONE),
        (SOME, NotMeasured("no control")),
    ],
)
def test_without_an_answer_it_stands_in_nobodys_way(backwards: Answer, control: Answer) -> None:
    """The original is silent as well, which would make a required cell blind."""
    verdict, cell = judged(backwards, control=control)
    assert verdict.word == "DELETED" and "judgement" not in cell and "within" not in cell


def test_the_same_cell_required_would_be_blind() -> None:
    needed = protocol([("as_is", "forget_accuracy"), ("backwards", "forget_accuracy")])
    verdict, cell = judged(NONE, by=needed)
    assert verdict.word == "INCONCLUSIVE" and cell["judgement"] == "blind"


def test_it_shares_the_level_of_what_convicts() -> None:
    assert required_cells(rule(), COLUMNS, {}) == 2
    assert required_cells(rule(), COLUMNS, {("backwards", "forget_accuracy"): "no questions"}) == 1
    few = hits(4, 60)
    assert judged(few, by=rule(level=0.2))[1]["d_lower"] > judged(few, by=rule(level=0.05))[1]["d_lower"]
    other = protocol([("as_is", "forget_accuracy"), ("backwards", "forget_accuracy")])
    assert judged(few)[1]["d_lower"] == judged(few, by=other)[1]["d_lower"]


def test_the_scope_says_what_could_only_convict_and_no_more_than_was_measured() -> None:
    assert (
        "1 required cells under these 1 conditions: as_is; 1 more can only convict: backwards; "
        in judged(NONE)[0].scope
    )
    said = "; 1 that could have convicted were not measured: backwards; "
    assert said in judged(NotMeasured("no"))[0].scope
    verdict, cell = judged(SOME, control=NotMeasured("budget exhausted"))
    assert said in verdict.scope and "can only convict" not in verdict.scope
    assert cell["status"] == "not measured" and cell["reason"] == "control: budget exhausted"


def test_what_is_not_applicable_is_not_said_to_convict() -> None:
    sources = Sources({"backwards": {"forget_accuracy": NONE}}, {}, {}, True)
    absent = {("backwards", "forget_accuracy"): "no questions"}
    (cell,) = make_cells(sources, {"forget_accuracy": COLUMNS["forget_accuracy"]}, rule(), absent, **GIVEN)
    assert "convicts" not in cell and cell["status"] == "not applicable"


def test_quick_1_has_no_such_cell_and_is_the_file_it_was() -> None:
    found = read_protocol("quick-1")
    assert (
        found.sha256 == "8384ea8f9aa32d571b92ed2e4de409bef8203ce2e1414def4dcb10b417e65538"
        and found.convicts == []
        and found.said_of_convicting == {}
    )


def test_standard_1_lists_the_words_in_which_the_small_model_is_silent() -> None:
    found = read_protocol("standard-1")
    assert {at for at, _ in found.convicts} == {"shots_4", "typo", "german", "gcg", "backwards"}
    assert not set(found.convicts) & set(found.cells)


ONLY = "convicting:\n  - {columns: [forget_accuracy], conditions: [nf4]}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ONLY, "forget_accuracy under nf4 is to convict twice"),
        (ONLY.replace("nf4", "nf5"), "'nf5' is none of its conditions"),
        (ONLY.replace("accuracy", "acuracy"), "'forget_acuracy' under required is no column"),
        (
            ONLY.replace("forget_accuracy", "retain_accuracy"),
            "'retain_accuracy' cannot be required: utility has no control",
        ),
        (ONLY.replace("conditions: [nf4]", "conditions: [nf4], margin: 0.1"), "unknown key 'margin'"),
    ],
)
def test_a_slip_is_refused(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (FOLDER / "quick-1.yaml").read_text(encoding="utf-8")
    (tmp_path / "quick-1.yaml").write_text(f"{whole}\n{text}", encoding="utf-8")
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    with pytest.raises(BadInput) as caught:
        read_protocol("quick-1")
    assert said in str(caught.value)


# --- from a model to the file that is verified

SMALL = """
name: small-1
level: 0.05
resamples: 1000
limits: {}
conditions:
  as_is: {name: as_is}
  begun: {name: prefilled, starts: [sure]}
probes: [knowledge, utility]
required: [{columns: [membership_questions], conditions: [as_is], margin: 0.99, side: either}]
convicting: [{columns: [forget_accuracy], conditions: [begun]}]
utility: [{columns: [retain_accuracy], margin: 0.5}]
generated: {columns: [], conditions: []}
"""


def leave_out(held: dict[str, Any]) -> None:
    """The row that convicts is gone, and the verdict is that of the smaller matrix."""
    for table in held["scores"].values():
        table.pop("begun", None)
    held["cells"] = [cell for cell in held["cells"] if cell["condition"] != "begun"]


def test_what_can_only_convict_is_verified_like_the_rest(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SMALL.replace("[knowledge, utility]", "[knowledge, membership, utility]")
    (tmp_path / "small-1.yaml").write_text(small, encoding="utf-8")
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    settings: Mapping[str, Any] = {**mini.inputs, **QUICKLY, "progress": QUIET, "reference": mini.reference}
    found = audit(mini.target, **settings, protocol="small-1", out=tmp_path / "run")
    assert found.audit["protocol"]["convicting"] == [{"condition": "begun", "column": "forget_accuracy"}]
    assert found.audit["protocol"]["m"] == 2
    assert found.verdict.word == "NOT DELETED"
    assert any("forget_accuracy under begun" in reason for reason in found.verdict.reasons)
    assert verify(found.run).problems == ()
    assert json.loads((found.run / "verdict.json").read_text())["word"] == "NOT DELETED"
    problems = reseal(found.run, leave_out)
    assert "audit.json: forget_accuracy under begun is required, and is left out" in problems


def test_a_request_alone_is_convicted_by_it_too() -> None:
    from letheon.audits.earlier import Part, each_alone

    counts = (40, 40)
    names = [f"forget/{100 * request + k}" for request, count in enumerate(counts) for k in range(1, count + 1)]

    def scores(first: float) -> Scores:
        return Scores(names, [f"unit {name}" for name in names], [first] * 40 + [0.0] * 40)

    rows = {"as_is": {"forget_accuracy": scores(0.0)}, "backwards": {"forget_accuracy": scores(1.0)}}
    silent = {at: {"forget_accuracy": scores(0.0)} for at in rows}
    sources = Sources(rows, silent, {"as_is": {"forget_accuracy": scores(1.0)}}, True)
    parts = [Part(tuple(names[:40]), {}), Part(tuple(names[40:]), {})]
    columns = {"forget_accuracy": COLUMNS["forget_accuracy"]}
    first, second = each_alone(sources, columns, rule(), {}, [], parts, **GIVEN)
    assert first["word"] == "NOT DELETED" and second["word"] != "NOT DELETED"
    assert [cell["condition"] for cell in first["cells"]] == ["as_is", "backwards"]
