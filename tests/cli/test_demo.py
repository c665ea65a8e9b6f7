"""What the demo says of its rows: as measured, and no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from letheon.cli.demo import what_rounding_did
from letheon.recipes.demo import SHORT_WORLD, guessing
from letheon.tiny.world import WorldSize, chance, make_world


def row(title: str, as_is: float | None, **rounded: float | None) -> Any:
    cells = [
        {"column": "forget_accuracy", "condition": condition, "value": value}
        for condition, value in {"as_is": as_is, **rounded}.items()
    ]
    other = {"column": "retain_accuracy", "condition": "int8", "value": 0.0}
    return SimpleNamespace(row=SimpleNamespace(title=title), audit=SimpleNamespace(audit={"cells": [other, *cells]}))


def test_a_fall_is_a_change_too() -> None:
    (said,) = what_rounding_did([row("a", 0.4, int8=0.41, nf4=0.1), row("b", 0.0, int8=0.02)])
    assert "changed the share of forgotten facts that are answered by at most 0.30 in the rows without a trick" in said
    assert said.endswith("On so small a model nothing comes back by itself.")


def test_what_came_back_without_a_trick_is_not_denied() -> None:
    (said,) = what_rounding_did([row("a", 0.0, int8=0.0, int4_row=0.2)])
    assert "by at most 0.20 in the row without" in said and "nothing comes back" not in said


@pytest.mark.parametrize(("back", "number"), [(0.99, "0.99"), (0.02, "0.02"), (0.0, "0.00"), (-0.3, "0.00")])
def test_the_sham_is_said_to_come_back_only_where_it_did(back: float, number: str) -> None:
    (said,) = what_rounding_did([row("sham: in bins", 0.3, int8=0.1, int4_row=0.3 + back)])
    assert ("rounding to one grid gave back 0.99" in said) == (back > 0.5)
    assert ("did not come back" in said and f"gave back at most {number}" in said) == (back < 0.5)


def test_what_was_not_measured_is_not_spoken_of() -> None:
    assert what_rounding_did([row("a", None, int8=0.5), row("sham", 0.1, int8=None)]) == []


@pytest.mark.parametrize(("short", "size"), [(True, SHORT_WORLD), (False, WorldSize())])
def test_what_guessing_gives_is_counted_in_the_world_that_is_shown(short: bool, size: WorldSize) -> None:
    rates = chance(make_world(3, size))
    said = guessing(short=short, seed=3)
    assert said.startswith(f"guessing: {rates['chance']:.2f} by chance")
    assert f"{rates['majority_forget']:.2f} of the forgotten" in said
    assert f"{rates['majority_retain']:.2f} of the retained" in said
    assert len(said) <= 120
