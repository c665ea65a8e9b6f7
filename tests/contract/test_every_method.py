"""What every method of every kind promises: a card that can be read, settings that go through a file, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

import letheon
from letheon.errors import BadInput
from letheon.methods import KINDS, build, card, describe, load, names
from tests.contract.register import every_variation, fields, options, takes_numbers

EVERY = [(kind, name) for kind in KINDS for name in names(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_it_says_what_it_does_where_it_comes_from_and_what_it_was_checked_against(kind: str, name: str) -> None:
    found = card(kind, name)
    assert found.summary.endswith((".", "?")) and len(found.summary) > 15
    assert found.source and found.checked_against
    assert [setting.name for setting in found.settings if not setting.doc] == []
    assert [setting.name for setting in found.settings] == list(fields(kind, name))
    assert load(kind, name).__doc__


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_it_has_a_test_of_its_own(kind: str, name: str) -> None:
    found = card(kind, name).path.relative_to(Path(letheon.__file__).parent)
    assert (Path(__file__).parents[1] / found.parent / f"test_{name}.py").is_file()


@pytest.mark.parametrize(("kind", "spec"), every_variation(*KINDS))
def test_settings_survive_the_way_through_a_file(kind: str, spec: dict[str, Any]) -> None:
    made = build(kind, spec)
    as_data = json.loads(json.dumps(describe(made), allow_nan=False))
    assert build(kind, as_data) == made and describe(build(kind, as_data)) == describe(made)
    assert hash(made) == hash(build(kind, spec))
    for setting in fields(kind, spec["name"]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, setting, None)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_bad_settings_are_refused_by_name(kind: str, name: str) -> None:
    with pytest.raises(BadInput, match=rf"{name}: unknown key 'no_such_setting'"):
        build(kind, {"name": name, "no_such_setting": 1})
    for setting, hint in fields(kind, name).items():
        if options(hint) or takes_numbers(hint):
            for value in ("no such value", math.nan, [1]):
                with pytest.raises(BadInput, match=rf"\b{setting}\b"):
                    build(kind, {"name": name, setting: value})
        if takes_numbers(hint):
            found = [refusal(kind, name, setting, value) for value in (-1e9, -(10**9), 0, 1e9, 10**9)]
            assert any(found), f"{name}.{setting} takes any number at all"
            assert all(setting in words for words in found if words)


def refusal(kind: str, name: str, setting: str, value: float) -> str:
    """Why a value is refused; nothing if it is taken."""
    try:
        build(kind, {"name": name, setting: value})
    except BadInput as error:
        return str(error)
    return ""


def test_no_folder_is_empty() -> None:
    assert {kind for kind, _ in EVERY} == set(KINDS)
