from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from letheon.reports.page import report
from letheon.reports.reading import read_run
from letheon.reports.samples import MOST_A_CELL, samples_by_cell

EVIL = '<script>alert("x")</script>'


def with_more(fakes: ModuleType, folder: Path, *, answer: str = "Rimtasar", count: int = 12) -> Path:
    """A run with answers under an attack as well."""
    run = fakes.write_run(folder / "run")
    (run / "audit.json").write_text(json.dumps(fakes.with_attacks(fakes.make_audit())))
    lines = fakes.make_items(answer=answer)
    lines += [
        {
            "id": f"forget{at:03d}", "role": "subject", "set": "forget_questions", "condition": "relearn_20",
            "prompt": f"{answer}?", "answer": answer, "given": answer if at % 3 else "no",
        }
        for at in range(count)
    ]  # fmt: skip
    fakes.write_lines(run / "items.jsonl", lines)
    return run


def test_every_cell_of_which_answers_were_kept_is_shown_once(fakes: ModuleType, tmp_path: Path) -> None:
    found = samples_by_cell(read_run(with_more(fakes, tmp_path)))
    shown = [(row["label"], cell["column"]) for row in found for cell in row["cells"]]
    columns = ["Facts, trained wordings", "Retained facts, trained wordings", "General facts, trained wordings"]
    assert shown == [
        *(("as is", column) for column in columns),
        *(("int4, per row", column) for column in columns),
        ("relearn, 20", columns[0]),
    ]
    attacked = found[-1]["cells"][0]
    assert attacked["said"] == "12 answers, 8 right" and not attacked["is_kept"]
    before, after = attacked["rows"][0]["given"]
    assert before == {"text": "Rimtasar", "is_right": True} and after == {"text": "no", "is_right": False}


def test_no_more_than_a_few_are_shown_of_a_cell(fakes: ModuleType, tmp_path: Path) -> None:
    (cell,) = samples_by_cell(read_run(with_more(fakes, tmp_path, count=50)))[-1]["cells"]
    assert len(cell["rows"]) == MOST_A_CELL == 12 and cell["said"].startswith("12 answers of 50 kept, ")


def test_a_cell_is_folded_and_markup_in_it_stays_text(fakes: ModuleType, tmp_path: Path) -> None:
    text = report(with_more(fakes, tmp_path, answer=EVIL)).read_text(encoding="utf-8")
    part = text[text.index("<h3>Cell by cell</h3>") :]
    assert part.count('<details class="cell">') == 7 and '<details class="cell" open' not in part
    assert "<summary><b>relearn, 20</b> · Facts, trained wordings: 12 answers, 8 right</summary>" in part
    assert "<script" not in text and part.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") > 30


def test_a_purged_run_says_why_they_are_gone(fakes: ModuleType, tmp_path: Path) -> None:
    run = with_more(fakes, tmp_path)
    (run / "items.jsonl").unlink()
    text = report(run).read_text(encoding="utf-8")
    assert "The raw text was purged." in text and "Cell by cell" not in text and "Rimtasar" not in text
