"""What every probe promises, run over the folder: columns that a cell can be made of, and the same answer twice."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.asked import ASKS, AskedSets, make_sets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.data.records import DataFile
from letheon.errors import NotMeasured
from letheon.methods import build, load, names
from tests.audits.fakes import scorer_of, sets, uniform_model
from tests.contract.register import every_variation
from tests.toys import encoder, llama, question, text

NO_SIGN_OF_KNOWLEDGE = {
    "forget_choice_entropy", "forget_entropy", "forget_repetition",
    "forget_truth_ratio_geometric", "forget_truth_ratio_arithmetic",
}  # fmt: skip
"""Columns of which more than the control has convicts nobody: a protocol that requires one is refused."""
BACKWARDS = 2
"""The copy that is asked everything in the other order."""
ROLES = ("forget", "retain", "holdout", "general")
COLUMNS = [
    pytest.param(param.values[1], column, id=f"{param.id}-{column}")
    for param in every_variation("probe")
    for column in load("probe", param.values[1]["name"]).columns  # type: ignore[index,call-overload]
]


@cache
def asked() -> AskedSets:
    """Every kind of set of every role: three people, two questions each with another wording and a wrong answer, a text."""
    files = {}
    for role in ROLES:
        people = [f"{role[:3].title()} {name}" for name in ("Ann", "Bo", "Cem")]
        records: list[Any] = []
        for number, unit in enumerate(people):
            for kind, answer in (("work", "Bru"), ("live", "Dax Mol")):
                line = 10 * number + len(answer)
                made = question(f"Where does {unit} {kind}?", answer, line=line, unit=unit)
                records.append(type(made)(**{**vars(made), "paraphrase": (f"{unit} {kind}s in",), "wrong": ("Fel",)}))
            records.append(
                text(f"{unit} ran home over the hill, and so it was all the day.", line=10 * number, unit=unit)
            )
        files[role] = DataFile(Path(f"{role}.jsonl"), role, tuple(records), unit_is_line=False)
    return make_sets(files, encoder=encoder(64), limits={}, only_units={}, also=ASKS)


@cache
def scorer(which: str, copy: int = 0) -> Scorer:
    """Of a model that is asked `asked()` alone, or the same backwards: what columns are made of is asked once."""
    return scorer_of(llama(seed=3) if which == "llama" else uniform_model(), 64)


def score(spec: dict[str, Any], column: str, given: AskedSets, by: Scorer | None = None, **settings: Any) -> Scores:
    found: Scores = build("probe", spec).score(column, given, by or scorer_of(llama(seed=3), 64), **settings)
    return found


@pytest.mark.parametrize(("spec", "column"), COLUMNS)
def test_a_column_is_one_finite_number_an_item_and_the_same_twice(spec: dict[str, Any], column: str) -> None:
    kind = load("probe", spec["name"]).columns[column]
    for which in ("llama", "uniform"):
        first, second = (score(spec, column, asked(), scorer(which, copy)) for copy in range(2))
        assert first == second
        assert len(first.items) == len(first.units) == len(first.values) == len(set(first.items)) > 0
        assert all(math.isfinite(value) for value in first.values)
        value = first.aggregate(kind.aggregate)
        assert math.isfinite(value) and value >= 0 and (kind.top is None or value <= kind.top)
        assert (first.member is not None) == (kind.aggregate == "auc")


@pytest.mark.parametrize(("spec", "column"), COLUMNS)
def test_it_asks_whom_it_says(spec: dict[str, Any], column: str) -> None:
    """A forget column asks the forget set, or the role that the control is made of; a utility never does."""
    kind = load("probe", spec["name"]).columns[column]
    found = score(spec, column, asked(), scorer("llama"))
    roles = {item.split("/")[0] for item in found.items}
    if kind.about == "utility":
        assert roles <= {"retain", "general"}
        return
    if kind.about == "membership":
        roles = {item.split("/")[0] for item, side in zip(found.items, found.member or (), strict=True) if side}
        strangers = {i.split("/")[0] for i, side in zip(found.items, found.member or (), strict=True) if not side}
        assert strangers == {"holdout"}
    assert roles == {"forget"}
    control = score(spec, column, asked(), scorer("llama"), role="holdout")
    assert "forget" not in {item.split("/")[0] for item in control.items}


@pytest.mark.parametrize(("spec", "column"), COLUMNS)
def test_nothing_to_ask_is_not_measured_or_empty_and_never_a_number(spec: dict[str, Any], column: str) -> None:
    with suppress(NotMeasured):
        assert list(score(spec, column, sets()).values) == []


@pytest.mark.parametrize(("spec", "column"), COLUMNS)
def test_the_order_of_questions_does_not_matter(spec: dict[str, Any], column: str) -> None:
    def turned(one: Any) -> Any:
        names = ("items", "units", "prompts", "answers", "examples")
        return replace(one, **{name: tuple(reversed(getattr(one, name))) for name in names})

    backwards = AskedSets({name: turned(one) for name, one in asked().sets.items()})
    straight, other = (
        score(spec, column, asked(), scorer("llama")),
        score(spec, column, backwards, scorer("llama", BACKWARDS)),
    )
    values = dict(zip(other.items, other.values, strict=True))
    assert [values[item] for item in straight.items] == pytest.approx(list(straight.values), rel=1e-4, abs=1e-6)


def test_columns_are_told_apart_and_say_what_they_are() -> None:
    columns = [(name, column) for probe in names("probe") for name, column in load("probe", probe).columns.items()]
    assert len({name for name, _ in columns}) == len(columns) == len({column.label for _, column in columns})
    for name, column in columns:
        assert isinstance(column, Column) and column.label
        if name not in NO_SIGN_OF_KNOWLEDGE:
            assert column.better == {"forget": "low", "membership": "control"}.get(column.about, column.better)
        assert (column.aggregate == "auc") == (column.about == "membership")
