"""The forget set cut by unit: what an attacker may learn, and what is asked afterwards; every part is asked once.

An attacker who trains on some of the forgotten people shows something only about the others. So in K parts each part is
asked once, of a model whose attacker has learned the K - 1 others and never saw its units; with two parts that is both
ways round. Strangers are cut as well, so that a control on strangers is asked of the same models. An attack that learns
nothing of the forget set needs no cut: everything is asked at once.

Source: retraining on T, Deeb and Roger 2024, arXiv:2410.08827.  Checked against: no unit is on both sides, every item
is asked once, records of the forget set are in no other set that the attacker is given.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.attacker import Attacker, Solved
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.models import ModelFolder

_SAME_PEOPLE = ("forget", "lookalike")
"""Roles whose items are about the units of the forget set; a look-alike question keeps the unit that it stands for."""
_KEPT = ("retain", "general")
"""Roles that nobody wants forgotten, which an attacker may have."""


@dataclass(frozen=True)
class Half:
    """One way round."""

    attacker: Attacker
    """What the attack may read: nothing about a unit that is asked."""
    sets: AskedSets
    """What may be asked: nothing about a unit that the attacker has seen."""


def halves(sets: AskedSets, *, original: ModelFolder | None = None) -> tuple[Half, ...]:
    """Both ways round. Raises NotMeasured: fewer than two units to be forgotten."""
    return parts(sets, 2, original=original)


def parts(sets: AskedSets, count: int, *, original: ModelFolder | None = None) -> tuple[Half, ...]:
    """Every way round of a cut into `count` parts; one way, with nothing learned, for 0.

    Raises:
        NotMeasured: fewer units to be forgotten than parts.
    """
    kept = {role: _kept(sets, role) for role in _KEPT}
    solved = {role: _solved(sets[f"{role}_questions"], set(kept[role])) for role in _KEPT}
    if count == 0:
        return (Half(Attacker((), kept, original, solved=solved), sets),)
    forgotten, strangers = _units(sets, "forget"), _units(sets, "holdout")
    if len(forgotten) < count:
        needed = "a unit to learn" if count == 2 else f"{count - 1} units to learn from"
        raise NotMeasured(
            f"an attacker needs {needed} and another to be asked about; the forget set has {len(forgotten)}"
        )
    found = []
    for part in range(count):
        asked = frozenset(forgotten[count - 1 - part :: count])
        others = [unit for unit in forgotten if unit not in asked]
        taught = _learned(sets, others)
        now = _asked(sets, asked, frozenset(strangers[part::count]))
        known = {**solved, "learned": _solved(_only(sets["forget_questions"], frozenset(others)))}
        found.append(Half(Attacker(taught.examples, kept, original, taught.units, known), now))
    return tuple(found)


def _learned(sets: AskedSets, units: Collection[str]) -> Asked:
    """Questions in trained wordings, or texts where there are no questions."""
    questions, texts = (_only(sets[f"forget_{kind}"], frozenset(units)) for kind in ("questions", "texts"))
    return questions if len(questions) else texts


def _asked(sets: AskedSets, asked: Collection[str], strangers: Collection[str]) -> AskedSets:
    allowed = {**dict.fromkeys(_SAME_PEOPLE, asked), "holdout": strangers}
    return AskedSets(
        {name: _only(one, allowed[role]) for name, one in sets.sets.items() if (role := _role(name)) in allowed}
    )


def _kept(sets: AskedSets, role: str) -> tuple[Example, ...]:
    """Questions and texts of a role that are not in the forget set as well: to learn these would be to learn T."""
    forgotten = {example.ids for name, one in sets.sets.items() if _role(name) == "forget" for example in one.examples}
    held = (*sets[f"{role}_questions"].examples, *sets[f"{role}_texts"].examples)
    return tuple(example for example in held if example.ids not in forgotten)


def _solved(asked: Asked, allowed: Collection[Example] | None = None) -> tuple[Solved, ...]:
    """Questions with their answers, in words; those whose tokens are allowed."""
    return tuple(
        Solved(prompt, answer, unit)
        for prompt, answer, unit, example in zip(asked.prompts, asked.answers, asked.units, asked.examples, strict=True)
        if allowed is None or example in allowed
    )


def _role(name: str) -> str:
    return name.split("_", 1)[0]


def _units(sets: AskedSets, role: str) -> list[str]:
    return list(dict.fromkeys(unit for name, one in sets.sets.items() if _role(name) == role for unit in one.units))


def _only(asked: Asked, units: Collection[str]) -> Asked:
    """The items about some units, in their order."""
    return asked.only([position for position, unit in enumerate(asked.units) if unit in units])
