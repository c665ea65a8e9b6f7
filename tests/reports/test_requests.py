"""The tables of a queue: every number is the one of its audit, and nothing is shown where there was one request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from letheon.reports.page import compare, report
from letheon.reports.reading import read_run
from letheon.reports.requests import of_queue, of_run, rows, table


def request(number: int, values: list[float], *, word: str = "INCONCLUSIVE", **changes: Any) -> dict[str, Any]:
    """One request as an audit has it: answered as is, and at int4 per row."""
    facts = [
        {
            "condition": condition,
            "column": "forget_accuracy",
            "value": value,
            "control": 0.03,
            "original": 0.98,
            "margin": 0.15,
        }
        for condition, value in zip(("as_is", "int4_row"), values, strict=True)
    ]
    data = {
        "path": f"data/<b>{number}</b>.jsonl",
        "sha256": str(number) * 64,
        "records": 160,
        "units": 10,
        "unit_is_line": False,
    }
    return {
        "data": data,
        "items": [],
        "absent": {},
        "word": word,
        "reasons": [],
        "unseen": [],
        "facts": facts,
        "cells": [],
        **changes,
    }


@pytest.fixture
def runs(fakes: ModuleType, tmp_path: Path) -> list[Path]:
    """After the first request, the second and the third; then the first comes back."""
    made = []
    shares = [
        [],
        [request(1, [0.04, 0.05]), request(2, [0.02, 0.07])],
        [request(1, [0.31, 0.42], word="NOT DELETED"), request(2, [0.01, 0.06]), request(3, [0.0, 0.0])],
    ]
    for number, requests in enumerate(shares, start=1):
        run = fakes.write_run(tmp_path / f"request-{number}", "gate")
        audit = json.loads((run / "audit.json").read_text())
        if requests:
            audit["requests"] = requests
        (run / "audit.json").write_text(json.dumps(audit))
        made.append(run)
    return made


def test_a_row_a_step_and_a_column_a_request(runs: list[Path]) -> None:
    heads, *steps = rows([read_run(run) for run in runs])
    assert heads[:5] == ["after", "verdict", "request 1", "request 2", "request 3"]
    assert heads[5:] == [
        "fall of retained facts, trained wordings",
        "fall of retained facts, other wordings",
        "fall of general facts, trained wordings",
    ]
    audit = json.loads((runs[0] / "audit.json").read_text())
    facts = [cell["value"] for cell in audit["cells"] if cell["column"] == "forget_accuracy"]
    assert steps[0][2:5] == [f"{facts[0]:.2f} ({max(facts):.2f})", "–", "–"]
    assert steps[1][2:5] == ["0.04 (0.05)", "0.02 (0.07)", "–"]
    assert steps[2][2:5] == ["0.31 (0.42) ▲", "0.01 (0.06)", "0.00 (0.00)"]
    falls = [row["fall"] for row in audit["utility"]]
    assert steps[2][5:] == [f"+{fall:.2f}" for fall in falls]
    assert [step[0] for step in steps] == ["request-1", "request-2", "request-3"]


def test_each_request_of_an_audit_has_its_row(runs: list[Path]) -> None:
    shown = of_run(json.loads((runs[2] / "audit.json").read_text()))
    assert shown is not None
    assert [row["word"] for row in shown["rows"]] == ["NOT DELETED", "INCONCLUSIVE", "INCONCLUSIVE"]
    assert shown["rows"][0]["cells"] == ["0.31", "0.42", "0.03", "0.98"]
    assert shown["rows"][1]["label"] == "request 2: b>.jsonl" or "2" in shown["rows"][1]["label"]
    assert shown["rows"][0]["said"] == "160 records about 10 units"


def test_one_request_has_no_table_of_its_own(runs: list[Path]) -> None:
    assert of_run(json.loads((runs[0] / "audit.json").read_text())) is None
    assert of_queue([read_run(runs[0])]) is None
    assert len(table([read_run(runs[0])])["rows"]) == 1, "a queue of one has one step all the same"
    assert "Each request alone" not in report(runs[0]).read_text()


def test_the_page_shows_both_and_a_path_stays_text(runs: list[Path], tmp_path: Path) -> None:
    page = compare(runs, tmp_path / "all.html").read_text()
    assert "Request by request" in page and page.count("<h2>Each request alone</h2>") == 2
    assert "0.31 (0.42) ▲" in page and "<b>1</b>" not in page
    assert "Request 1, to be forgotten" in page and "1" * 64 in page


def test_a_request_of_texts_alone_shows_them(runs: list[Path]) -> None:
    audit = json.loads((runs[2] / "audit.json").read_text())
    for fact in audit["requests"][1]["facts"]:
        fact.update(column="verbatim")
    audit["requests"][2]["facts"] = []
    (runs[2] / "audit.json").write_text(json.dumps(audit))
    assert table([read_run(runs[2])])["rows"][0]["cells"][1:3] == ["0.01 (0.06)", "– (–)"]


def test_the_sentence_says_what_the_mean_hides(fakes: ModuleType, runs: list[Path]) -> None:
    audit = json.loads((runs[2] / "audit.json").read_text())
    for cell in audit["cells"]:
        if cell.get("judgement"):
            cell["judgement"] = "clear"
    for word, said in (
        ("NOT DELETED", "Traces of request 1 alone, which the mean over all 3 requests hides."),
        ("INCONCLUSIVE", "1 request of which nothing could have been seen"),
    ):
        audit["verdict"]["word"] = word
        audit["requests"][1]["unseen"] = ["forget_accuracy under as_is: nothing could have been seen"]
        (runs[2] / "audit.json").write_text(json.dumps(audit))
        (runs[2] / "verdict.json").unlink(missing_ok=True)
        assert said in re.sub(r"\s+", " ", report(runs[2]).read_text())
