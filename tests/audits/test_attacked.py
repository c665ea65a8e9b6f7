"""Rows of a walk: both ways round, joined, and the weights as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from letheon.audits.asked import AskedSets
from letheon.audits.attacked import Row, attacked_rows, rows_of, walks
from letheon.audits.attacker import AskedOfNobody, Attacker, Target
from letheon.audits.columns import Scores
from letheon.audits.conditions.as_is import AsIs
from letheon.audits.conditions.relearn import Relearn
from letheon.errors import CannotFinish, NotMeasured
from tests.audits.fakes import questions, scorer_of, sets
from tests.toys import bits, llama

PEOPLE = ["a", "b", "c"]


def world() -> AskedSets:
    return sets(questions("forget_questions", [(f"Who is {unit}?", "x") for unit in PEOPLE], PEOPLE))


@dataclass(frozen=True)
class Adding:
    """Adds 1 to every weight, each step."""

    steps: tuple[int, ...]
    amount: float = 1.0

    along: ClassVar[str] = "steps"
    folds: ClassVar[int] = 2

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        for step in range(1, max(self.steps) + 1):
            with torch.no_grad():
                for parameter in target.model.parameters():
                    parameter += self.amount
            if step in self.steps:
                then(step)


def first_weight(model: Any) -> float:
    return float(next(model.parameters()).detach().flatten()[0])


def test_rows_of_one_walk_are_asked_in_its_states_and_the_weights_come_back() -> None:
    model = llama()
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    start, seen = first_weight(model), []

    def ask(row: str, now: AskedSets, reader: Any) -> list[Row]:
        seen.append((row, round(first_weight(model) - start), now["forget_questions"].units))
        return [{"column": Scores(now["forget_questions"].items, now["forget_questions"].units, [0.0] * len(now["forget_questions"]))}]  # fmt: skip

    rows = rows_of("added", Adding((1, 3)))
    assert list(rows) == ["added_1", "added_3"]
    found = attacked_rows(rows, scorer_of(model), world(), ask)
    assert seen == [
        ("added_1", 1, ("b",)),
        ("added_3", 3, ("b",)),
        ("added_1", 1, ("a", "c")),
        ("added_3", 3, ("a", "c")),
    ]
    for name in rows:
        (row,) = found[name]
        scores = row["column"]
        assert isinstance(scores, Scores) and sorted(scores.units) == PEOPLE and len(scores.items) == 3
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_a_column_that_one_half_cannot_answer_is_not_measured() -> None:
    def ask(row: str, now: AskedSets, reader: Any) -> list[Row]:
        if len(now["forget_questions"]) == 1:
            return [{"column": NotMeasured("why")}]
        return [{"column": Scores(("i",), ("u",), (1.0,))}]

    answer = attacked_rows({"added": Adding((1,))}, scorer_of(llama()), world(), ask)["added"][0]["column"]
    assert isinstance(answer, NotMeasured) and str(answer) == "why"


def test_an_attack_that_moved_nothing_is_no_attack() -> None:
    with pytest.raises(NotMeasured, match="has moved no weight"):
        attacked_rows({"added": Adding((1,), 0.0)}, scorer_of(llama()), world(), lambda row, now, reader: [])


@dataclass(frozen=True)
class Reaching(Adding):
    """Reads what it may not."""

    reaches: str = "asked"

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        getattr(attacker, self.reaches)


@pytest.mark.parametrize("name", ["asked", "sets", "_sets", "answers", "halves"])
def test_an_attack_that_reaches_for_the_other_half_ends_the_audit(name: str) -> None:
    with pytest.raises(AskedOfNobody, match=f"an attack has reached for '{name}': it may read learned, units, kept"):
        attacked_rows({"it": Reaching((1,), reaches=name)}, scorer_of(llama()), world(), lambda row, now, reader: [])


def test_an_attack_is_given_nothing_about_whom_it_is_asked() -> None:
    """Everything that hangs on the two objects, to any depth, but for the model's own parts."""
    seen: list[str] = []

    @dataclass(frozen=True)
    class Looking(Adding):
        def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
            held = [getattr(attacker, name) for name in Attacker.__slots__]
            seen.append(repr(held) + repr({name: value for name, value in vars(target).items() if name != "model"}))
            super().walk(target, attacker, then)

    scorer, whole = scorer_of(llama()), world()
    scorer.scores(whole["forget_questions"])  # the scorer remembers all that it was asked
    asked: list[tuple[str, ...]] = []

    def ask(row: str, now: AskedSets, reader: Any) -> list[Row]:
        asked.append(tuple(str(example.ids) for example in now["forget_questions"].examples))
        return [{}]

    attacked_rows({"it": Looking((1,))}, scorer, whole, ask)
    assert len(seen) == len(asked) == 2
    for given, tokens in zip(seen, asked, strict=True):
        assert tokens and not [ids for ids in tokens if ids in given]


def test_a_hook_that_is_left_behind_is_found_and_the_weights_come_back() -> None:
    @dataclass(frozen=True)
    class Leaving(Adding):
        def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
            target.model.register_forward_hook(lambda *given: None)
            super().walk(target, attacker, then)

    model = llama()
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    with pytest.raises(CannotFinish, match="an attack has left 1 hooks in the model"):
        attacked_rows({"it": Leaving((1,))}, scorer_of(model), world(), lambda row, now, reader: [{}])
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before


def test_an_attack_that_learns_nothing_is_asked_everything_at_once() -> None:
    @dataclass(frozen=True)
    class Whole(Adding):
        folds: ClassVar[int] = 0

        def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
            with pytest.raises(NotMeasured, match="neither questions nor texts"):
                _ = attacker.learned
            super().walk(target, attacker, then)

    seen: list[AskedSets] = []
    whole = world()
    attacked_rows({"it": Whole((1,))}, scorer_of(llama()), whole, lambda row, now, reader: (seen.append(now), [{}])[1])
    assert seen == [whole]


def test_weights_come_back_after_a_fault_in_the_middle() -> None:
    model = llama()
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}

    def ask(row: str, now: AskedSets, reader: Any) -> list[Row]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attacked_rows({"added": Adding((2,))}, scorer_of(model), world(), ask)
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before


def test_conditions_that_differ_in_their_steps_alone_are_one_walk() -> None:
    given = {
        **rows_of("relearn", Relearn(steps=(20, 5))),
        "as_is": AsIs(),
        "again": AsIs(),
        "later": Relearn(steps=(40,)),
        "faster": Relearn(steps=(5,), learning_rate=1e-3),
    }
    assert [list(group) for group in walks(given)] == [
        ["relearn_5", "relearn_20", "later"],
        ["as_is"],
        ["again"],
        ["faster"],
    ]
    assert list(rows_of("one", Relearn(steps=(7,)))) == ["one"]
    assert rows_of("as_is", AsIs()) == {"as_is": AsIs()}
