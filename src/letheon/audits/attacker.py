"""What an attack is given: the model, and what the attacker knows. Nobody who is asked about can be read from either.

An attack that saw the questions it is scored on would measure what it was told. So its code gets no scorer, which
remembers what was asked, but a `Target`; and no sets of the audit, but an `Attacker`: the learned half, what is kept,
and the original's folder. Whatever else is read from it raises, and ends the audit: such an attack is wrong, and its
number would be.

Source: this project.  Checked against: an attack that reaches for the other half, records of the forget set that stand
in the retained ones as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from letheon.data.encode import Encoder, Example
from letheon.errors import BadInput, NotMeasured
from letheon.models import ModelFolder
from letheon.training.losses import Body

_OPTION = {"retain": "--retain", "general": "--general"}


class AskedOfNobody(BadInput):
    """An attack has reached for what is asked of the model."""


@dataclass(frozen=True)
class Solved:
    """A question with its answer, in words."""

    prompt: str
    answer: str
    unit: str


@dataclass(frozen=True)
class Target:
    """The model under attack. It is put back to the bit afterwards, whatever the attack does to its weights."""

    model: Any
    body: Body
    encoder: Encoder
    device: str
    folder: ModelFolder | None = None
    """Where it was loaded from; None where there is no folder."""


class Attacker:
    """What the attacker knows, and nothing beside it.

    Args:
        learned: V, the part of the forget set that is known: questions in trained wordings, or texts where there are no
            questions. Empty for an attack that learns nothing of it.
        kept: role ("retain", "general") -> records that are not to be forgotten.
        original: the model before it was unlearned, for those who are thought to have it.
        units: whom each learned record is about; by default each is a unit of its own.
        solved: role ("retain", "general", "learned") -> its questions in words.
    """

    __slots__ = ("_kept", "_learned", "_original", "_solved", "_units")

    def __init__(
        self,
        learned: tuple[Example, ...] = (),
        kept: Mapping[str, tuple[Example, ...]] | None = None,
        original: ModelFolder | None = None,
        units: tuple[str, ...] = (),
        solved: Mapping[str, tuple[Solved, ...]] | None = None,
    ) -> None:
        self._learned, self._kept, self._original = learned, dict(kept or {}), original
        self._solved = dict(solved or {})
        self._units = units or tuple(str(number) for number in range(len(learned)))

    @property
    def learned(self) -> tuple[Example, ...]:
        """V. Raises NotMeasured where there is none."""
        if not self._learned:
            raise NotMeasured("the attacker's half holds neither questions nor texts")
        return self._learned

    @property
    def units(self) -> tuple[str, ...]:
        """Whom each record of `learned` is about."""
        return self._units

    def kept(self, role: str) -> tuple[Example, ...]:
        """Records of a role, such as "retain", those of the forget set left out. Raises NotMeasured where none are."""
        if not self._kept.get(role):
            remedy = f" ({_OPTION[role]} FILE)" if role in _OPTION else ""
            raise NotMeasured(f"the attack needs {role} records{remedy}, and there are none")
        return self._kept[role]

    def solved(self, role: str) -> tuple[Solved, ...]:
        """Questions of a role with their answers, in words; of "learned": V's. Raises NotMeasured where none are."""
        if not self._solved.get(role) and role == "learned":
            raise NotMeasured("the attacker's half holds no questions")
        if not self._solved.get(role):
            remedy = f" ({_OPTION[role]} FILE)" if role in _OPTION else ""
            raise NotMeasured(f"the attack needs {role} questions{remedy}, and there are none")
        return self._solved[role]

    @property
    def original(self) -> ModelFolder:
        """The folder of the model before it was unlearned. Raises NotMeasured where nobody named one."""
        if self._original is None:
            raise NotMeasured("the attack needs the original (--original DIR)")
        return self._original

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # copy, pickle and doctest ask for these
            raise AttributeError(name)
        raise AskedOfNobody(
            f"an attack has reached for {name!r}: it may read learned, units, kept(role), solved(role) and "
            "original, and nothing of what the model is asked. Take it out of the attack's code"
        )
