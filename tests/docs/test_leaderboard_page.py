"""The published leaderboard: a row for every preset, and a page that says what its result file says."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from letheon.unlearning.presets import PRESETS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("leaderboard_page")


@pytest.fixture
def found() -> dict[str, Any]:
    return dict(json.loads((BENCHMARKS / "results" / "leaderboard.json").read_text(encoding="utf-8")))


def test_every_preset_has_a_rate_and_a_row_on_every_world(found: dict[str, Any]) -> None:
    assert list(found["sweep"]["chosen"]) == list(PRESETS)
    assert set(PRESETS) < set(found["rows"])
    for name, row in found["rows"].items():
        assert list(row) == [str(world) for world in found["worlds"]], name


def test_a_preset_ran_with_its_own_terms_and_the_common_steps(found: dict[str, Any], page: ModuleType) -> None:
    board = importlib.import_module("leaderboard")
    assert found["settings"] == board.SMALL and found["sweep"]["rates"] == list(board.RATES)
    for name in PRESETS:
        tried = {float(rate): one for rate, one in found["sweep"]["tried"][name].items()}
        assert found["sweep"]["chosen"][name] == board.best_rate(tried), name


def test_the_page_is_the_one_that_the_result_makes(page: ModuleType, found: dict[str, Any]) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(found)


def test_nothing_published_names_a_place_on_a_machine(found: dict[str, Any]) -> None:
    assert not re.findall(r"(?<![\w.])/\w+/", json.dumps(found)), "a path from the root"
