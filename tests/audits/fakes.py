"""Scripted scores, protocols and models for tests of what is made from them. Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.attacker import Target
from letheon.audits.columns import Column, Scores
from letheon.audits.protocol import Generated, Protocol, RequiredCells, RequiredUtility
from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder, Example
from letheon.models import ModelFolder
from letheon.training.losses import Body
from letheon.training.scoring import ExampleScores
from tests.toys import encoder, llama

COLUMNS = {
    "forget_accuracy": Column("forgotten facts", "forget"),
    "membership_questions": Column("membership", "membership", "auc", "control"),
    "retain_accuracy": Column("retained facts", "utility", better="high"),
    "retain_perplexity": Column("perplexity", "utility", "exp_mean", top=None),
}


def rates(values: Sequence[float], *, each: int = 1, prefix: str = "u") -> Scores:
    """One value a unit, repeated for `each` of its items."""
    items = [
        (f"{prefix}/{unit}/{k}", f"{prefix}{unit}", value) for unit, value in enumerate(values) for k in range(each)
    ]
    return Scores([item for item, _, _ in items], [unit for _, unit, _ in items], [value for _, _, value in items])


def hits(count: int, of: int, **changes: Any) -> Scores:
    """`count` units that know, the rest that do not."""
    return rates([1.0] * count + [0.0] * (of - count), **changes)


def familiar(members: Sequence[float], strangers: Sequence[float]) -> Scores:
    """Scores for an AUC, one unit an item."""
    names = [f"m{k}" for k in range(len(members))] + [f"s{k}" for k in range(len(strangers))]
    member = [1] * len(members) + [0] * len(strangers)
    return Scores([f"item {name}" for name in names], names, [*members, *strangers], member)


def protocol(
    cells: Iterable[tuple[str, str]] = (("as_is", "forget_accuracy"),),
    *,
    margin: float = 0.15,
    side: str = "above",
    utility: Sequence[str] = ("retain_accuracy",),
    level: float = 0.05,
) -> Protocol:
    """A protocol with these required cells."""
    rules = {
        (condition, column): RequiredCells(columns=[column], conditions=[condition], margin=margin, side=side)  # type: ignore[arg-type]
        for condition, column in cells
    }
    return Protocol(
        name="scripted",
        level=level,
        resamples=2000,
        limits={},
        conditions={condition: {"name": "as_is"} for condition, _ in rules},
        probes=[],
        required=list(rules.values()),
        utility=[RequiredUtility(columns=list(utility), margin=0.1)],
        generated=Generated(columns=[], conditions=[]),
        cells=rules,
    )


def asked(name: str, examples: Sequence[Example], units: Sequence[str] | None = None) -> Asked:
    """A set of encoded items."""
    count = len(examples)
    return Asked(
        name,
        tuple(f"{name}/{k}" for k in range(count)),
        tuple(units or (f"{name} unit {k}" for k in range(count))),
        tuple(f"prompt {k}" for k in range(count)),
        tuple(f"answer {k}" for k in range(count)),
        tuple(examples),
    )


def questions(name: str, pairs: Sequence[tuple[str, str]], units: Sequence[str] | None = None) -> Asked:
    """A set of questions in words."""
    return Asked(
        name,
        tuple(f"{name}/{k}" for k in range(len(pairs))),
        tuple(units or (f"{name} unit {k}" for k in range(len(pairs)))),
        tuple(prompt for prompt, _ in pairs),
        tuple(answer for _, answer in pairs),
        tuple(encoder().question(prompt, answer) for prompt, answer in pairs),
    )


def sets(*given: Asked) -> AskedSets:
    return AskedSets({one.name: one for one in given})


def scorer_of(model: Any, window: int = 128, coder: Encoder | None = None) -> Scorer:
    return Scorer(model, Body(model), coder or encoder(window), "cpu")


def target_of(model: Any, coder: Encoder | None = None, *, folder: ModelFolder | None = None) -> Target:
    """What an attack is given of a model."""
    return Target(model, Body(model), coder or encoder(), "cpu", folder)


def uniform_model() -> Any:
    """All logits 0: every token is equally likely."""
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


class ScriptedScorer(Scorer):
    """Says what it was told to, set by set."""

    def __init__(
        self,
        *,
        log_probs: Mapping[str, Sequence[Sequence[float]]] | None = None,
        exact: Mapping[str, Sequence[bool]] | None = None,
        answers: Mapping[str, Sequence[str]] | None = None,
        continuations: Sequence[str] = (),
    ) -> None:
        self.encoder = encoder()
        self._said, self._hit, self._given = log_probs or {}, exact or {}, answers or {}
        self._continued = list(continuations)
        self.continued: list[tuple[Sequence[Sequence[int]], Sequence[int]]] = []

    def scores(self, asked: Asked, *, moments: bool = False) -> ExampleScores:
        values = self._said.get(asked.name, [[-1.0]] * len(asked))
        exact = self._hit.get(asked.name, [False] * len(asked))
        return ExampleScores(
            [np.asarray(each, dtype=np.float64) for each in values],
            [np.full(len(each), hit, dtype=np.bool_) for each, hit in zip(values, exact, strict=True)],
        )

    def answers(self, asked: Asked, items: Iterable[int] | None = None) -> list[str]:
        return list(self._given[asked.name])

    def continuations(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        stops: Iterable[int] = (),
        items: Sequence[str] = (),
    ) -> list[str]:
        self.continued.append((prompts, lengths))
        return self._continued
