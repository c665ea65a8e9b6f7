"""Ask a model while it is attacked with what an attacker knows; every item once, and put back to the bit.

An attack is a condition with three more things:
    along   the field whose values are rows, such as "steps"; "" for an attack of one row
    folds   parts that the forget set is cut into: K - 1 are learned, one is asked (see `halves`); 0: nothing is learned
    walk(target, attacker, then)   changes the model bit by bit, and calls `then(value)` where a row is due, or then(0)
An attack whose answers are not the model's own words gives a `Reader` with the value (see `readers`); one that asks in
other words gives a `Rewording` (see `rewording`).
Conditions that differ in the field `along` alone are one walk with several rows. Weights may be left changed, since
they are put back from copies; hooks must be taken out by the attack itself.

Source: this project.  Checked against: rows of one walk = walks of their own, weights bit by bit, every item once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from letheon.audits.asked import AskedSets
from letheon.audits.attacker import Attacker, Target
from letheon.audits.columns import Scores
from letheon.audits.halves import parts
from letheon.audits.matrix import Answer
from letheon.audits.readers import Reader
from letheon.audits.rewording import Rewording, reworded
from letheon.audits.scorer import Scorer, refuse_broken
from letheon.audits.wordings import Wording
from letheon.errors import CannotFinish, NotMeasured
from letheon.models import ModelFolder

Row = dict[str, Answer]
"""Column -> scores, or why there are none."""


@runtime_checkable
class Attack(Protocol):
    """A condition that is walked."""

    @property
    def along(self) -> str: ...

    @property
    def folds(self) -> int: ...

    def walk(self, target: Target, attacker: Attacker, then: Callable[..., None]) -> None: ...


def stops(attack: Attack | Wording) -> tuple[Any, ...]:
    """What `then` is called with, in order: the values of the field `along`."""
    return tuple(sorted(getattr(attack, attack.along))) if attack.along else (0,)


def rows_of(name: str, condition: Any) -> dict[str, Any]:
    """Row -> condition: an attack of several steps, or a wording of several kinds, is a row for each of them."""
    if not isinstance(condition, Attack | Wording) or len(stops(condition)) == 1:
        return {name: condition}
    return {f"{name}_{_said(value)}": _only_at(condition, value) for value in stops(condition)}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _only_at(attack: Any, *values: Any) -> Any:
    return replace(attack, **{attack.along: values}) if attack.along else attack


def walks(conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows that are made in one go: those of one attack together, every other by itself."""
    groups: dict[Any, dict[str, Any]] = {}
    for name, condition in conditions.items():
        same = name
        if isinstance(condition, Attack):
            settings = {key: value for key, value in vars(condition).items() if key != condition.along}
            same = repr((type(condition), settings))
        groups.setdefault(same, {})[name] = condition
    return list(groups.values())


def attacked_rows(
    walk: Mapping[str, Any],
    scorer: Scorer,
    sets: AskedSets,
    ask: Callable[[str, AskedSets, Reader | None], Sequence[Row]],
    *,
    folder: ModelFolder | None = None,
    original: ModelFolder | None = None,
) -> dict[str, list[Row]]:
    """The tables of one walk.

    Args:
        walk: row -> attack, of one stop each, equal but for the field `along`.
        scorer: the model as its file has it; it is that again afterwards.
        sets: everything that may be asked.
        ask: (row, what may be asked now, who answers in place of the model) -> a row of answers, or several (the
            model's own, the control's).
        folder: where the model was loaded from.
        original: the model before it was unlearned.
    Returns:
        Row -> the answers that `ask` gave, those of the parts joined.
    Raises:
        NotMeasured: the forget set cannot be cut, or an attack could not go on or has changed nothing.
        CannotFinish: an attack has left a hook behind.
    """
    names_at: dict[Any, list[str]] = {}
    for name, attack in walk.items():
        names_at.setdefault(stops(attack)[0], []).append(name)
    attack = _only_at(next(iter(walk.values())), *sorted(names_at))
    target = Target(scorer.model, scorer.body, scorer.encoder, scorer.device, folder)
    found: dict[str, list[Sequence[Row]]] = {name: [] for name in walk}
    for part in parts(sets, attack.folds, original=original):
        with _restored(scorer.model) as before:

            def then(
                stop: Any,
                reader: Reader | None = None,
                rewording: Rewording | None = None,
                now: AskedSets = part.sets,
                before: _Before = before,
            ) -> None:
                before.look(reader or rewording)
                scorer.forget_results()
                asked = now if rewording is None else reworded(now, rewording, scorer.encoder)
                for name in names_at[stop]:
                    found[name].append(ask(name, asked, reader))

            attack.walk(target, part.attacker, then)
    scorer.forget_results()
    return {name: [_joined(rows) for rows in zip(*all_parts, strict=True)] for name, all_parts in found.items()}


def _joined(parts: Sequence[Row]) -> Row:
    return parts[0] if len(parts) == 1 else {column: _join([part[column] for part in parts]) for column in parts[0]}


def _join(answers: Sequence[Answer]) -> Answer:
    scores = [answer for answer in answers if isinstance(answer, Scores)]
    if len(scores) < len(answers):
        return next(answer for answer in answers if isinstance(answer, NotMeasured))
    return Scores(
        [item for one in scores for item in one.items],
        [unit for one in scores for unit in one.units],
        [value for one in scores for value in one.values],
    )


@dataclass
class _Before:
    """The model as it was, and whether it has ever been another one when it was asked."""

    model: Any
    weights: dict[str, torch.Tensor]
    hooks: int
    has_acted: bool = False

    def look(self, instead: Reader | Rewording | None) -> None:
        """Called before the model is asked, or somebody in its place, or in other words."""
        is_other = instead is not None or hooks(self.model) != self.hooks
        self.has_acted = self.has_acted or is_other or self.has_moved()

    def has_moved(self) -> bool:
        """Whether any weight is another one. NaN is no reason to say that it is the same."""
        return not all(torch.equal(tensor, self.weights[name]) for name, tensor in self.model.state_dict().items())


def hooks(model: Any) -> int:
    """Hooks on the model's modules, without those by which transformers itself catches outputs: they stay."""
    found = (
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    return sum(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in found)


@contextmanager
def _restored(model: Any) -> Iterator[_Before]:
    """Every weight is put back to the bit.

    Raises:
        NotMeasured: a weight that is not finite, which fused attention may pass over in silence; an attack that has
            changed nothing that was asked.
        CannotFinish: a hook is left.
    """
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    refuse_broken(weights)
    before = _Before(model, weights, hooks(model))
    try:
        yield before
        if not before.has_acted:
            raise NotMeasured(
                "the attack has moved no weight, no hook was there when the model was asked, and no word was another"
            )
    finally:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(weights[name])
        model.requires_grad_(False).eval()
        model.zero_grad(set_to_none=True)
        if (left := hooks(model) - before.hooks) > 0:
            raise CannotFinish(
                f"an attack has left {left} hooks in the model, so that whatever is asked next would be asked of "
                "another one. Take them out in the attack's own finally"
            )
