"""The leaderboard: which settings a preset is given, which rate is chosen, what is kept, what the page says."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from letheon.audits.protocol import read_protocol
from letheon.recipes.tiny_models import TinyModels
from letheon.unlearning.presets import PRESETS

ROOT = Path(__file__).parents[2]
FREE = {"learning_rate", "steps", "batch_size", "epochs"}


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of benchmarks/, by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module(name)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("leaderboard", monkeypatch)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("leaderboard_page", monkeypatch)


def cell(column: str, condition: str, d: float, **more: Any) -> dict[str, Any]:
    """A required cell as an audit.json has it."""
    margin = 0.3 if column == "membership_texts" else 0.15
    side = "either" if column.startswith("membership") else "above"
    return {
        "column": column, "condition": condition, "required": True, "status": "measured", "margin": margin, "side": side,
        "judgement": "clear", "value": 0.5 + d, "control": 0.5, "d": d, "d_lower": d - 0.1, "d_upper": d + 0.05, **more,
    }  # fmt: skip


def audited(*cells: dict[str, Any], word: str = "NOT DELETED", fall: float = 0.2) -> dict[str, Any]:
    """As much of an audit.json as is read."""
    rows = [
        {"column": column, "condition": condition, "margin": 0.1, "judgement": judgement, "subject": 0.8, "fall": lost}
        for column in ("retain_accuracy", "retain_accuracy_held_out", "general_accuracy")
        for condition, judgement, lost in (("as_is", "lost", fall), ("shipped", "kept", 0.0))
    ]
    return {"verdict": {"word": word, "reasons": ["a", "b", "c", "d"]}, "cells": list(cells), "utility": rows}


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_of_a_preset_changes_but_rate_steps_and_batch(board: ModuleType, name: str) -> None:
    given = board.settings_of(name, 3e-4)
    assert given.pop("preset") == name
    assert given["learning_rate"] == 3e-4
    assert set(given) <= FREE


def test_margins_are_those_of_the_protocol(board: ModuleType) -> None:
    protocol = read_protocol(board.PROTOCOL)
    plain = {column: cell for cell in protocol.required for column in cell.columns}
    assert plain["forget_accuracy"].margin == plain["forget_accuracy_held_out"].margin == board.FACTS_MARGIN
    assert {one.margin for one in protocol.utility} == {board.UTILITY_MARGIN}


def test_how_far_outside_is_counted_in_margins(board: ModuleType) -> None:
    original = {"forget": 1.0, "retain": 1.0, "retain_held_out": 0.9, "general": 1.0}
    reference = {"forget": 0.04}
    kept = {"retain": 1.0, "retain_held_out": 0.9, "general": 1.0}
    assert board.distances({"forget": 0.19, **kept}, original, reference) == {"facts": 1.0, "utility": 0.0}
    lost = {"forget": 0.01, **kept, "retain_held_out": 0.7}
    assert board.distances(lost, original, reference) == {"facts": -0.2, "utility": 2.0}
    assert board.distances({**lost, "general": 0.5}, original, reference)["utility"] == 5.0


def outside(facts: float, utility: float) -> dict[str, Any]:
    """A run of the sweep."""
    return {"outside": {"facts": facts, "utility": utility}}


def test_the_first_rate_within_the_margins_is_chosen_else_the_least_far_outside(board: ModuleType) -> None:
    assert board.best_rate({5e-4: outside(0.9, 0.9), 1e-3: outside(0.1, 0.1)}) == 5e-4
    assert board.best_rate({5e-4: outside(0.2, 1.0), 1e-3: outside(0.1, 0.99)}) == 1e-3
    assert board.best_rate({5e-4: outside(6.0, 0.0), 1e-3: outside(0.2, 3.0)}) == 1e-3
    assert board.best_rate({5e-4: outside(6.0, 0.0), 1e-3: outside(0.2, 7.0)}) == 5e-4
    assert board.best_rate({1e-3: outside(-0.2, 10.0), 5e-4: outside(-0.2, 10.0)}) == 5e-4
    assert board.best_rate({5e-4: {"stopped": "CannotFinish"}, 1e-3: outside(9.0, 0.0)}) == 1e-3
    assert board.best_rate({5e-4: {"stopped": "CannotFinish"}}) is None


@pytest.mark.parametrize(
    ("at_first", "then", "tried"),
    [
        ((0.0, 0.95), (0.0, 0.9), [5e-4]),
        ((0.6, 1.0), (0.0, 0.95), [5e-4, 1e-3]),
        ((0.6, 1.0), (0.3, 0.5), [5e-4, 1e-3]),
        ((0.6, 1.0), (0.3, 0.95), [5e-4, 1e-3, 2e-3]),
        ((0.0, 0.0), (0.0, 0.0), [5e-4, 1e-3]),
    ],
)
def test_the_sweep_ends_within_the_margins_and_goes_on_while_more_is_left_than_lost(
    board: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_first: tuple[float, float],
    then: tuple[float, float],
    tried: list[float],
) -> None:
    made = {"target": (1.0, 1.0), "reference": (0.0, 1.0), "npo-0.0005": at_first, "npo-0.001": then, "npo-0.002": then}
    models = TinyModels({}, Path("target"), Path("reference"))
    monkeypatch.setattr(board, "tiny_models", lambda *_, **__: models)
    monkeypatch.setattr(board, "forgotten", lambda name, rate, *_: (Path(f"{name}-{rate:g}"), {"steps": 9}))

    def exam(folder: Path, files: Any, *, keep: Path) -> Any:
        forget, kept = made[folder.name]
        return {"as_is": {"forget": forget, **dict.fromkeys(board.UTILITIES, kept)}}

    monkeypatch.setattr(board, "exam", exam)
    found = board.sweep("npo", tmp_path, board.Ledger(tmp_path / "cpu.json"))
    assert list(found) == tried
    assert found[5e-4]["outside"] == board.distances(
        {"forget": at_first[0], **dict.fromkeys(board.UTILITIES, at_first[1])},
        dict.fromkeys(("forget", *board.UTILITIES), 1.0),
        {"forget": 0.0},
    )
    assert found[5e-4]["steps"] == 9


def test_only_refusals_are_kept_from_running_texts(board: ModuleType) -> None:
    assert [name for name in PRESETS if board.takes_questions_alone(name)] == ["idk", "dpo"]


def test_the_looks_that_are_kept_are_the_middle_one_and_the_last(board: ModuleType, tmp_path: Path) -> None:
    looks = {10: 0.9, 20: 0.1, 30: 0.2, 40: 0.5}
    lines = [{"step": step, **({"retain_accuracy": looks[step]} if step in looks else {})} for step in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert board.looks_of(tmp_path) == {"retained_at_half": 0.1, "retained_at_end": 0.5}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    assert board.looks_of(tmp_path) == {}


def test_a_piece_is_counted_once_and_an_interrupted_one_is_not_lost(board: ModuleType, tmp_path: Path) -> None:
    ledger = board.Ledger(tmp_path / "cpu.json")

    def burn() -> str:
        return str(sum(range(3_000_000)))[:1]

    def stopped() -> str:
        burn()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.counted("row npo 0", stopped)
    lost = ledger.spent()["row npo 0, stopped"]
    assert lost > 0
    assert ledger.counted("row npo 0", burn) == "4"
    once = ledger.spent()
    assert once["row npo 0"] > 0
    ledger.counted("row npo 0", burn)
    assert ledger.spent() == once
    assert board.minutes({"models 0": 60.0, "sweep npo": 30.0, "row npo 0": 90.0}) == {
        "training the worlds' models": 1.0,
        "sweep": 0.5,
        "forgetting and audits": 1.5,
        "in all": 3.0,
    }


def test_a_row_that_is_done_is_read_and_nothing_is_run(
    board: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "tiny_models", lambda *_, **__: None)
    runs: list[str] = []

    def forgotten(*_: Any) -> tuple[Path, dict[str, Any]]:
        runs.append("forget")
        return tmp_path, {"steps": 7}

    monkeypatch.setattr(board, "forgotten", forgotten)
    monkeypatch.setattr(board, "judged", lambda *_: {"verdict": "DELETED"})
    ledger = board.Ledger(tmp_path / "cpu.json")
    first = board.row_on("npo", 1e-3, 0, tmp_path, ledger)
    assert first == {"steps": 7, "verdict": "DELETED"}
    assert board.row_on("npo", 1e-3, 0, tmp_path, ledger) == first
    assert runs == ["forget"]
    assert board.row_on("ga", None, 0, tmp_path, ledger)["verdict"] == board.NOT_FINISHED
    assert runs == ["forget"]


def test_figures_are_those_of_the_required_cells(board: ModuleType) -> None:
    other = cell("forget_rouge", "as_is", 0.1, required=False)
    missing = {**cell("verbatim", "as_is", 0.0), "status": "not measured"}
    found = board.figures(audited(cell("forget_accuracy", "int8", 0.02), other, missing))
    assert found["verdict"] == "NOT DELETED"
    assert found["reasons"] == ["a", "b", "c"]
    assert found["not_measured"] == ["verbatim under as_is"]
    [only] = found["cells"]
    assert (only["value"], only["control"], only["d"], only["lower"], only["upper"]) == (0.52, 0.5, 0.02, -0.08, 0.07)
    assert [row["fall"] for row in found["utility"]] == [0.2, 0.2, 0.2]


def test_a_line_has_left_and_difference_and_the_farthest_cell(board: ModuleType, paper: ModuleType) -> None:
    one = board.figures(
        audited(
            cell("forget_accuracy", "as_is", 0.06),
            cell("forget_accuracy", "int8", -0.4),
            cell("membership_questions", "nf4", -0.12),
            cell("membership_texts", "as_is", -0.2),
        )
    )
    line = paper.line("npo", {"0": {**one, "steps": 40}}, 5e-4)
    cells = [part.strip() for part in line.strip("| ").split("|")]
    assert cells[:5] == ["`npo`", "0.0005", "40", "NOT DELETED", "0.56; +0.06"]
    assert cells[5] == "not measured; not measured"
    assert cells[6] == "membership, questions, nf4: -0.12 (-0.22 to -0.07)"
    assert cells[7:] == ["0.20", "0.20", "0.20", "not measured", "0.30"]
    two = paper.line("npo", {"0": one, "1": {**one, "verdict": "DELETED"}}, 5e-4)
    assert "NOT DELETED, DELETED" in two and "0.56 (0.56 to 0.56)" in two


def test_a_row_that_could_not_finish_is_not_measured_and_never_zero(paper: ModuleType) -> None:
    line = paper.line("rmu", {"0": {"verdict": "COULD NOT FINISH", "reasons": ["CannotFinish"]}}, 1e-3)
    assert line.count("not measured") == 10
    assert not re.search(r"0\.00", line.split("COULD NOT FINISH")[1])


def test_words_of_the_page_count_what_is_there(board: ModuleType, paper: ModuleType) -> None:
    good = board.figures(audited(cell("forget_accuracy", "as_is", 0.0), cell("forget_accuracy", "fp4", 0.03), word="DELETED", fall=0.0))  # fmt: skip
    bad = board.figures(
        audited(
            cell("forget_accuracy", "as_is", 0.3, judgement="knowledge found"),
            cell("membership_texts", "as_is", -0.3, judgement="over-forgotten"),
        )
    )
    for row in good["utility"]:
        row["judgement"] = "kept"
    found = {
        "rows": {
            "original": {"0": bad},
            "npo": {"0": {**good, "stopped": "forgotten (0.04 of the answers left) and useful (utility 0.97)"}},
            "ga": {"0": {**bad, "stopped": "the step limit of 9", "retained_at_half": 0.2, "retained_at_end": 0.3}},
        },
        "sweep": {
            "chosen": {"npo": 1e-3, "ga": 5e-4},
            "rates": [5e-4, 1e-3],
            "tried": {
                "npo": {5e-4: outside(2.0, 0.0), 1e-3: outside(0.3, 0.2)},
                "ga": {5e-4: {"stopped": "CannotFinish"}},
            },
        },
    }
    said = " ".join(paper.sentences(found))
    assert "Of 2 pairs of a preset and a world 1 ended DELETED, 1 ended NOT DELETED." in said
    assert "DELETED on every world: `npo`. On some of them only: none." in said
    assert "trained or other wordings, 1 of 2." in said
    assert "membership by texts, 0 of 2; 1 forgotten past the control" in said
    assert "Fell by more than 0.10: retained facts, 1 of 2." in said
    assert "gave back of the forgotten facts is +0.030 (`npo`, world 0, fp4)" in said
    assert "of 1 NOT DELETED, 1 lost a utility as well." in said
    assert "Met the stop rule within the steps on some world: `npo`. The other 1 runs" in said
    assert "in 1 of them the retained share was still rising" in said
    assert "the rate chosen is 0.0005 for 1, 0.001 for 1 of 2 presets; no others were tried." in said
    assert "Within all margins there, as the file is: `npo`." in said
