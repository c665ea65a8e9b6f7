from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from letheon.errors import BadInput
from letheon.reports.files import FOLDER, write_files
from letheon.reports.page import report
from letheon.runs.listing import purge

NUMBERS = (
    "value",
    "lower",
    "upper",
    "original",
    "control",
    "d",
    "d_lower",
    "d_upper",
    "margin",
    "retained",
    "regained",
)


@pytest.fixture
def run(fakes: ModuleType, tmp_path: Path) -> Path:
    made: Path = fakes.write_run(tmp_path / "run")
    audit = fakes.with_scores(fakes.with_attacks(fakes.make_audit()))
    audit["cells"][0]["within"] = [-0.125, 1 / 3]
    (made / "audit.json").write_text(json.dumps(audit))
    return made


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_read_back_is_the_audit(run: Path) -> None:
    write_files(run)
    audit = json.loads((run / "audit.json").read_text())
    rows = read(run / FOLDER / "matrix.csv")
    assert len(rows) == len(audit["cells"])
    for row, cell in zip(rows, audit["cells"], strict=True):
        for name in NUMBERS:
            assert (float(row[name]) if row[name] else None) == cell.get(name), name
        for name in ("n_items", "n_units"):
            assert (int(row[name]) if row[name] else None) == cell.get(name)
        for name in ("condition", "column", "status", "side", "judgement", "reason"):
            assert row[name] == (cell.get(name) or "")
        assert row["required"] == str(cell["required"]).lower()
    assert [float(rows[0][f"within_{end}"]) for end in ("lower", "upper")] == [-0.125, 1 / 3]
    assert rows[1]["within_lower"] == ""


def test_what_was_not_measured_is_empty_and_never_zero(run: Path) -> None:
    write_files(run)
    missing = [row for row in read(run / FOLDER / "matrix.csv") if row["status"] == "not measured"]
    assert missing and all(row["value"] == "" and row["reason"] for row in missing)
    (spent,) = [
        row for row in read(run / FOLDER / "recovery.csv") if (row["at"], row["column"]) == ("40", "forget_accuracy")
    ]
    assert spent["value"] == "" and "budget exhausted" in spent["reason"]


def test_the_verdicts_distances_and_the_curves_have_files_too(run: Path) -> None:
    write_files(run)
    audit: dict[str, Any] = json.loads((run / "audit.json").read_text())
    required = [(cell["condition"], cell["column"]) for cell in audit["cells"] if cell["required"]]
    assert [(row["condition"], row["column"]) for row in read(run / FOLDER / "distances.csv")] == required
    curve = [row for row in read(run / FOLDER / "roc.csv") if row["model"] == "original"]
    values = audit["scores"]["original"]["as_is"]["membership_texts"]["values"]
    texts = [float(row["threshold"]) for row in curve if row["column"] == "membership_texts"]
    assert texts == sorted(set(values), reverse=True)


def test_each_picture_stands_alone(run: Path) -> None:
    pictures = [path for path in write_files(run) if path.suffix == ".svg"]
    names = {path.name for path in pictures}
    assert {"distances.svg", "recovery-1.svg", "recovery-4.svg", "roc.svg", "trade-off.svg"} < names
    assert "training-1-forget.svg" in names and len(names) == len(pictures)
    for path in pictures:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag.endswith("}svg") and len(root[1].text or "") > 40
        assert "var(" not in path.read_text(encoding="utf-8")


def test_the_same_bytes_every_time(run: Path) -> None:
    first = {path.name: path.read_bytes() for path in write_files(run)}
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):
        assert {path.name: path.read_bytes() for path in write_files(run)} == first


def test_purge_leaves_them_since_no_raw_text_is_in_them(fakes: ModuleType, run: Path) -> None:
    paths = write_files(run)
    report(run)
    raw = {str(line[name]) for line in fakes.make_items() for name in ("unit", "prompt", "answer")}
    removed = purge(run)
    assert run / "items.jsonl" in removed and not set(removed) & set(paths)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not [one for one in raw if one in text], path


def test_an_audit_without_attacks_or_scores_leaves_headings_alone(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", bare=True)
    names = {path.name for path in write_files(run)}
    assert names == {
        "distances.svg", "trade-off.svg", "matrix.csv", "distances.csv", "recovery.csv", "roc.csv",
    }  # fmt: skip
    assert read(run / FOLDER / "recovery.csv") == [] == read(run / FOLDER / "roc.csv")
    assert (run / FOLDER / "roc.csv").read_text().startswith("column,model,threshold,")


def test_a_folder_without_an_audit_gets_no_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Run `letheon audit`"):
        write_files(tmp_path)
    assert not (tmp_path / FOLDER).exists()
