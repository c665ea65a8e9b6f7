"""`letheon runs`: what ran, and what it still holds; `letheon report`, `letheon run`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letheon.runs.record import RunFolder

Letheon = Callable[..., Any]


@pytest.fixture
def run(here: Path) -> Path:
    opened = RunFolder.open(here / "runs" / "one")
    with opened.stage("forget", {"seed": 0}, {"forget_data": here / "f.jsonl"}, None) as stage:
        (opened.path / "items.jsonl").write_text("{}\n")
        stage.produced(opened.path / "items.jsonl", may_be_purged=True)
    with pytest.raises(KeyboardInterrupt), opened.stage("audit", {}, {}, None):
        raise KeyboardInterrupt
    return opened.path


def test_no_runs(letheon: Letheon, here: Path) -> None:
    assert letheon("runs").out == "no runs in runs\n"
    assert json.loads(letheon("runs", "--json").out) == []


def test_the_table_says_what_stopped_and_what_holds_raw_text(letheon: Letheon, run: Path) -> None:
    ended = letheon("runs")
    assert ended.code == 0
    first, second = ended.out.splitlines()
    assert first.startswith("one  20")
    assert first.endswith("s  -  1-forget done, 2-audit interrupted  holds raw text")
    assert second == "next: the command that began runs/one, to continue it"


def test_the_command_that_began_a_run_is_printed_to_continue_it(letheon: Letheon, here: Path) -> None:
    words = ["train", "m", "--data", "r.jsonl", "--out", "runs/two parts", "--learning-rate", "1e30", "--epochs", "9"]
    assert letheon(*words).code == 4
    assert letheon("runs").out.splitlines()[-1] == f"next: letheon {shlex.join(words)}"
    (found,) = json.loads(letheon("runs", "--json").out)
    assert found["command"] == f"letheon {shlex.join(words)}"
    again = letheon(*words, "--quiet")  # another command line alone is no changed machine
    assert again.code == 4 and "other conditions" not in again.err


def test_json_lists_every_run(letheon: Letheon, run: Path) -> None:
    (found,) = json.loads(letheon("runs", "--root", run.parent, "--json").out)
    assert found["name"] == "one"
    assert found["stages"] == [["1-forget", "done"], ["2-audit", "interrupted"]]
    assert found["holds_raw_text"] is True


@pytest.mark.parametrize("named", ["one", "runs/one"])
def test_purge_takes_a_name_or_a_path(letheon: Letheon, run: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.reports.page.report", lambda run: (run / "report.html").write_text("<p>none</p>"))
    (run / "report.html").write_text("<p>raw</p>")
    (run.parent / "report.html").write_text("<p>raw</p>")
    ended = letheon("runs", "purge", named)
    assert ended.code == 0, ended.err
    assert "removed: runs/one/items.jsonl\n" in ended.out
    assert "made again, without samples: runs/one/report.html\n" in ended.out
    assert (run / "report.html").read_text() == "<p>none</p>"
    assert "runs/report.html may show samples of several runs; remove it or make it again\n" in ended.out
    assert ended.out.endswith("next: letheon verify runs/one\n")
    assert not (run / "items.jsonl").exists()
    assert letheon("runs", "purge", named).out.startswith("nothing to remove in runs/one\n")


def test_purge_of_an_unknown_run_names_the_nearest(letheon: Letheon, run: Path) -> None:
    ended = letheon("runs", "purge", "ome")
    assert ended.code == 2
    assert "'ome' is not a run in runs, nor a folder. Did you mean 'one'? Known: one (letheon runs)" in ended.err


def test_a_folder_that_is_no_run_is_not_purged(letheon: Letheon, here: Path) -> None:
    (here / "items.jsonl").write_text("{}\n")
    ended = letheon("runs", "purge", here)
    assert ended.code == 2
    assert "is not a run: it has no record.json" in ended.err
    assert (here / "items.jsonl").exists()


def test_report_makes_the_page(letheon: Letheon, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.reports.page.report", lambda run: run / "report.html")
    drawn = [Path("runs/one/figures/roc.svg"), Path("runs/one/figures/matrix.csv")]
    monkeypatch.setattr("letheon.reports.files.write_files", lambda run: drawn)
    ended = letheon("report", "runs/one")
    lines = ["report: runs/one/report.html", "figures: runs/one/figures (2 files, SVG and CSV)"]
    assert (ended.code, ended.out.splitlines()) == (0, [*lines, "next: letheon verify runs/one"])
    assert json.loads(letheon("report", "runs/one", "--json").out)["figures"] == list(map(str, drawn))


BENCHMARK = {
    "schema": "letheon.benchmark/1",
    "settings": {"benchmark": {"name": "people"}},
    "model": {"path": "model", "sha256": "a" * 64},
    "figures": [
        {"name": "facts", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "better": "low", "note": ""},
    ],
}


def test_a_run_with_a_benchmark_alone_has_a_page_of_its_own(letheon: Letheon, run: Path) -> None:
    (run / "benchmark.json").write_text(json.dumps(BENCHMARK))
    ended = letheon("report", "runs/one")
    lines = ["benchmark: runs/one/benchmark.html", "its figures: runs/one/figures/benchmark.csv"]
    assert (ended.code, ended.out.splitlines(), ended.err) == (0, lines, "")
    assert "0.5000" in (run / "benchmark.html").read_text(encoding="utf-8")
    assert not (run / "report.html").exists()


def test_a_run_with_both_has_both_pages(letheon: Letheon, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.reports.page.report", lambda run: run / "report.html")
    monkeypatch.setattr("letheon.reports.files.write_files", lambda run: [Path("runs/one/figures/roc.svg")])
    (run / "benchmark.json").write_text(json.dumps(BENCHMARK))
    (run / "audit.json").write_text("{}")
    said = json.loads(letheon("report", "runs/one", "--json").out)
    assert said["report"].endswith("report.html") and said["benchmark"].endswith("benchmark.html")


def test_a_report_without_an_audit_is_refused(letheon: Letheon, run: Path) -> None:
    ended = letheon("report", "runs/one")
    assert ended.code == 2
    assert ended.out == ""
