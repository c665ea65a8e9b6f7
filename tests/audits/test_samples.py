"""Some answers in words: of every set, not too many, spread over it, under ids that name nobody."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest

from letheon.audits.asked import Asked
from letheon.audits.samples import CONDITIONS, SETS, most_at, said
from letheon.audits.scorer import Scorer
from tests.audits.fakes import questions, scorer_of, sets
from tests.toys import llama


class Echo(Scorer):
    """Answers with the question, so that an answer can be told from another one's."""

    def __init__(self) -> None:
        """Needs no model."""

    def answers(self, asked: Asked, items: Iterable[int] | None = None) -> list[str]:
        return [f"said to {asked.prompts[item]}" for item in (range(len(asked)) if items is None else items)]


@pytest.mark.parametrize(("count", "most"), [(1, 10), (5, 10), (10, 10), (11, 10), (29, 10), (119, 60)])
def test_no_more_than_wanted_spread_and_each_with_its_own_answer(count: int, most: int) -> None:
    pairs = [(f"Who is number {k}?", "Bru") for k in range(count)]
    many = sets(*(questions(name, pairs) for name in SETS))
    lines = said(many, Echo(), role="subject", condition="as_is", hashed=str, most=most)
    for name in SETS:
        mine = [line for line in lines if line["set"] == name]
        assert min(count, most) / 2 <= len(mine) <= min(count, most)
        places = [int(line["id"].removeprefix(f"{name}/")) for line in mine]
        gap = math.ceil(count / most)
        assert places[0] == 0 and places[-1] >= count - gap
        assert {b - a for a, b in pairwise(places)} <= {gap}
        assert all(line["given"] == f"said to Who is number {k}?" for k, line in zip(places, mine, strict=True))
    assert len(lines) == sum(line["set"] in SETS for line in lines)


def test_what_is_kept_is_said_by_the_file_as_it_is_and_by_one_rounded_model() -> None:
    assert CONDITIONS == ("as_is", "int4_row")


@pytest.mark.parametrize(
    ("condition", "parts", "most"),
    [("as_is", 0, 60), ("int4_row", 0, 60), ("shipped", 0, 12), ("relearn_5", 2, 6), ("folds", 20, 1), ("int8", 0, 0)],
)
def test_a_few_are_kept_where_the_protocol_generates_anyway(condition: str, parts: int, most: int) -> None:
    generated = {"forget_rouge": {"as_is", "shipped", "folds"}, "verbatim": {"relearn_5"}}
    assert most_at(condition, generated, parts=parts) == most
    assert most_at(condition, {}, parts=parts) == (60 if condition in CONDITIONS else 0)


@pytest.mark.parametrize(("count", "most"), [(800, 12), (119, 12), (13, 12), (7, 6)])
def test_who_was_asked_before_is_asked_again(count: int, most: int) -> None:
    """So that an answer stands beside what the original said to the same question."""
    whole = sets(questions("forget_questions", [(f"Who is number {k}?", "Bru") for k in range(count)]))
    before = said(whole, Echo(), role="original", condition="as_is", hashed=str)
    ids = {line["id"] for line in before}
    kept = said(whole, Echo(), role="subject", condition="shipped", hashed=str, most=most, among=ids)
    assert {line["id"] for line in kept} <= ids and most / 2 <= len(kept) <= most
    half = replace(whole["forget_questions"], **{
        name: getattr(whole["forget_questions"], name)[1::3]
        for name in ("items", "units", "prompts", "answers", "examples")
    })  # fmt: skip
    part = said(sets(half), Echo(), role="subject", condition="relearn", hashed=str, most=most, among=ids)
    assert part and {line["id"] for line in part} <= {line["id"] for line in before}
    assert all(line["given"] == f"said to {line['prompt']}" for line in part)


def test_who_was_never_asked_before_is_asked_for_the_first_time() -> None:
    whole = sets(questions("forget_questions", [("Who?", "Bru"), ("Where?", "Dax")]))
    kept = said(whole, Echo(), role="subject", condition="shipped", hashed=str, most=12, among={"of another set"})
    assert len(kept) == 2


def test_a_line_holds_what_was_asked_and_what_was_said() -> None:
    one = sets(questions("forget_questions", [("Who is it?", "Bru"), ("Where?", "Dax")], ["a", "b"]))
    scorer = scorer_of(llama())
    lines = said(one, scorer, role="original", condition="int4_row", hashed=lambda item: item[::-1])
    given = scorer.answers(one["forget_questions"])
    assert lines[1] == {
        "id": "forget_questions/1"[::-1],
        "role": "original",
        "set": "forget_questions",
        "condition": "int4_row",
        "unit": "b",
        "prompt": "Where?",
        "answer": "Dax",
        "given": given[1],
    }


def test_sets_that_are_not_there_say_nothing() -> None:
    assert said(sets(), scorer_of(llama()), role="subject", condition="as_is", hashed=str) == []
