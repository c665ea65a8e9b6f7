"""`letheon methods`: what there is, from the files themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from letheon.methods import KINDS, cards
from letheon.unlearning.presets import PRESETS

Letheon = Callable[..., Any]


def test_json_is_a_list_of_every_method(letheon: Letheon) -> None:
    ended = letheon("methods", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert [(one["kind"], one["name"]) for one in found] == [(card.kind, card.name) for card in cards()]
    for one in found:
        assert {"name", "kind", "summary", "source", "checked_against", "settings"} <= set(one)
        assert one["summary"] and one["source"] and one["checked_against"]
    npo = next(one for one in found if one["name"] == "npo")
    assert npo["options"] == ["forget --method"]
    assert npo["settings"][0]["name"] == "beta" and npo["settings"][0]["default"] == "1.0"


def test_the_table_has_every_kind_with_its_options(letheon: Letheon) -> None:
    page = letheon("methods").out
    for card in cards():
        assert f"\n{card.kind}" in f"\n{page}"
        assert card.summary in page
    assert "retain_term  (forget --retain-term)\n" in page
    assert "rate  (train --rate, forget --rate)\n" in page


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone(letheon: Letheon, kind: str) -> None:
    found = json.loads(letheon("methods", "--kind", kind, "--json").out)
    assert {one["kind"] for one in found} <= {kind}
    assert len(found) == sum(card.kind == kind for card in cards())


def test_one_method_is_shown_with_its_formula_and_settings(letheon: Letheon) -> None:
    page = letheon("methods", "npo").out
    assert page.startswith("npo, a forget term (forget --method npo)\n")
    assert "loss = -(2 / beta) * mean(log_sigmoid(-beta * r))" in page
    assert "  --method.beta  float, default 1.0\n      Sharpness" in page


def test_a_name_of_several_kinds_shows_all(letheon: Letheon) -> None:
    page = letheon("methods", "none").out
    assert "none, a retain term (forget --retain-term none)" in page
    assert "none, a smoother (forget --smooth none)" in page


def test_unknown_names_are_answered_with_the_nearest(letheon: Letheon) -> None:
    ended = letheon("methods", "npoo")
    assert (ended.code, ended.out) == (2, "")
    assert "'npoo' is not a method. Did you mean 'npo'?" in ended.err
    ended = letheon("methods", "--kind", "rates")
    assert ended.code == 2
    assert "'rates' is not a kind of method. Did you mean 'rate'?" in ended.err


def test_presets_can_be_typed_as_they_are_shown(letheon: Letheon) -> None:
    page = letheon("methods", "--presets").out
    found = json.loads(letheon("methods", "--presets", "--json").out)
    assert [one["name"] for one in found] == list(PRESETS)
    joined = " ".join(page.split())
    for (name, row), one in zip(PRESETS.items(), found, strict=True):
        assert f"{name} {row.paper} --" in joined and f"measured: {row.measured}" in joined
        assert one["measured"] == row.measured
    assert "--method npo --method.beta 0.1 --method.reduction sum --retain-term klr" in joined
    assert max(map(len, page.splitlines())) <= 120
    for line in page.splitlines():  # an option stands beside its value
        assert not line.rstrip().split(" ")[-1].startswith("--")
    assert "--clip null" in page and "None" not in page  # as it can be typed
