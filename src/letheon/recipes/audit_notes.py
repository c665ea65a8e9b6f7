"""What an audit asks, written down without a model: its probes run on a scorer that notes what it is asked.

Of every condition: which sets are scored and how often, which answers are generated, which questions are put in other
words, how many answers are drawn. And which required cells could not be measured, because of what the data are.

Source: this project.  Checked against: what real audits ask; cells that a real audit does not measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.attacked import Attack
from letheon.audits.halves import parts
from letheon.audits.plan import SHIPPED, Plan
from letheon.audits.sampler import ROWS, Sampling
from letheon.audits.samples import MOST, most_at, said
from letheon.audits.scorer import SPARE_TOKENS, Scorer
from letheon.audits.wordings import Wording, reworded, silencing
from letheon.data.encode import Encoder, Example
from letheon.errors import NotMeasured
from letheon.training.losses import Body
from letheon.training.scoring import ExampleScores

EVERYTHING = ("forget", "membership", "utility")
_NAMED = 4
"""Rows that a sentence names."""


@dataclass
class Notes:
    """What an audit asks."""

    scored: Counter[str] = field(default_factory=Counter)
    """Set -> how often all of it is scored."""
    worded: list[Example] = field(default_factory=list)
    """Questions in other words, each as often as it is scored."""
    generated: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """(prompts, tokens of the longest, new tokens) of a generation batch -> how often there is one."""
    left: dict[str, str] = field(default_factory=dict)
    """Row -> a sentence about the questions that it leaves out."""
    unmeasured: dict[tuple[str, str], str] = field(default_factory=dict)
    """(condition, column) of the audited model -> why there would be no number."""


@dataclass
class _Noting:
    """Stands for a model that generates."""

    notes: Notes
    generation_config: Any = None
    config: Any = None
    base_model_prefix: ClassVar[str] = "body"

    def get_output_embeddings(self) -> None:
        """It has no head, and no body either."""

    def generate(self, *, input_ids: torch.Tensor, generation_config: Any, **_: Any) -> Any:
        """Note the batch; the answers are tokens of no meaning."""
        count, width = input_ids.shape
        new = int(generation_config.max_new_tokens)
        self.notes.generated[count, width, new] += 1
        return np.zeros((count, width + new), dtype=np.int64)


class _NotingScorer(Scorer):
    """One model under one condition."""

    def __init__(self, notes: Notes, encoder: Encoder, known: AskedSets) -> None:
        model = _Noting(notes)
        super().__init__(model, Body(model), encoder, "cpu")
        self.notes, self.known = notes, known
        self.seen: set[str] = set()

    def scores(self, asked: Asked, *, moments: bool = False) -> ExampleScores:
        """Note the set, once; no token is certain and none is impossible."""
        self._note(asked)
        values = [np.full(len(example.answer_ids), -1.0) for example in asked.examples]
        pairs = [np.ones((2, len(each))) for each in values]
        return ExampleScores(values, [each > 0 for each in values], pairs)

    def first_log_probs(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Note the set; zeros."""
        self._note(asked)
        return np.zeros((len(asked), len(tokens)))

    def gradient_norms(self, asked: Asked) -> NDArray[np.float64]:
        """Note the set three times over: a backward pass is two forward ones. Its memory is not noted."""
        self.notes.scored[asked.name] += 3
        return np.zeros(len(asked))

    def samples(self, asked: Asked, sampling: Sampling) -> list[list[str]]:
        """Note the prompts, read once, and every answer as if no two began alike: at most so much. They are empty."""
        key = (asked.name, sampling)
        if key not in self._samples:
            at_once = max(1, ROWS // sampling.samples)
            batches = -(-len(asked) // at_once)
            width = max(len(example.prompt_ids) for example in asked.examples)
            new = max(len(example.answer_ids) for example in asked.examples) + SPARE_TOKENS
            self.notes.generated[at_once, width, 1] += batches
            self.notes.generated[at_once * sampling.samples, 1, new] += batches
            self._samples[key] = [[""] * sampling.samples for _ in asked.examples]
        return self._samples[key]

    def _note(self, asked: Asked) -> None:
        if asked.name in self.seen:
            return
        self.seen.add(asked.name)
        if self.known[asked.name] is asked:
            self.notes.scored[asked.name] += 1
        else:
            self.notes.worded += asked.examples


def notes_of(plan: Plan, encoder: Encoder) -> Notes:
    """Everything that the subject, its control and the original are asked."""
    notes = Notes()
    silent = silencing(plan.conditions)
    for name, condition in plan.conditions.items():
        times = 2 + (name in silent)  # the subject, its control, the original in the same words
        if isinstance(condition, Wording):
            _worded(plan, notes, encoder, name, condition, times=times)
            continue
        if isinstance(condition, Attack) and condition.folds:
            # Each part is asked once, which is everything about the forget set; of the control as well.
            try:
                parts(plan.sets, condition.folds)
            except NotMeasured as reason:
                _nothing(plan, notes, name, reason)
                continue
            others = "forget" if plan.control.kind == "reference" else plan.control.kind
            for role in ("forget", others, "forget")[:times]:
                _ask_row(plan, _NotingScorer(notes, encoder, plan.sets), name, role=role, about=("forget",))
            continue
        scorer = _NotingScorer(notes, encoder, plan.sets)
        _ask_row(plan, scorer, name, unmeasured=notes.unmeasured)
        if plan.control.kind != "reference":
            _ask_row(plan, scorer, name, role=plan.control.kind)
        elif name != SHIPPED:
            _ask_row(plan, _NotingScorer(notes, encoder, plan.sets), name)
        if most := most_at(name, plan.generated):
            _sample(plan, scorer, name, most)
    original = _NotingScorer(notes, encoder, plan.sets)
    _ask_row(plan, original, "as_is")
    _sample(plan, original, "as_is", MOST)
    return notes


def unmeasured(notes: Notes, plan: Plan, required: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence for each reason why required cells could not be measured, and one for each row that leaves out some.

    Args:
        required: (condition, column).
    """
    cells: dict[str, list[tuple[str, str]]] = {}
    for cell in required:
        if cell in notes.unmeasured and cell[0] in plan.conditions:
            cells.setdefault(notes.unmeasured[cell], []).append(cell)
    found = []
    for reason, at in cells.items():
        rows = list(dict.fromkeys(row for row, _ in at))
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        said_of = f"{', '.join(dict.fromkeys(column for _, column in at))} under {', '.join(rows[:_NAMED])}{more}"
        found.append(f"{len(at)} required cells would not be measured ({said_of}): {reason}")
    return [*found, *notes.left.values()]


def _worded(plan: Plan, notes: Notes, encoder: Encoder, name: str, wording: Wording, *, times: int) -> None:
    """A wording's questions, of the forgotten and of the control."""
    own = "" if plan.control.kind == "reference" else plan.control.kind
    try:
        worded = reworded(wording, plan.sets, encoder, roles=["forget", own] if own else ["forget"])
    except NotMeasured as reason:
        _nothing(plan, notes, name, reason)
        return
    if sentence := worded.sentence(name):
        notes.left[name] = sentence
    for number, role in enumerate(("forget", own or "forget", "forget")[:times]):
        scorer = _NotingScorer(notes, encoder, plan.sets)
        for column, kind in plan.columns.items():
            if kind.about != "forget" or kind.asked_of != "questions" or not plan.is_made(column, name):
                continue
            try:
                found = plan.probe_of[column].score(column, worded.sets, scorer, role=role)
                why = "" if found.values else "nothing is left to be asked"
            except NotMeasured as reason:
                why = str(reason)
            if why and number == 0:
                notes.unmeasured[name, column] = worded.why(role) or why


def _nothing(plan: Plan, notes: Notes, condition: str, reason: NotMeasured) -> None:
    """A row that is not measured at all."""
    notes.unmeasured |= {(condition, column): str(reason) for column in plan.columns}


def _ask_row(
    plan: Plan,
    scorer: Scorer,
    condition: str,
    *,
    role: str = "forget",
    about: Sequence[str] = EVERYTHING,
    unmeasured: dict[tuple[str, str], str] | None = None,
) -> None:
    """All columns of a condition, as the audit's tables ask for them."""
    for column, kind in plan.columns.items():
        if not plan.is_made(column, condition) or kind.about not in about or (role != "forget" != kind.about):
            continue
        asked_of = {} if kind.about == "membership" else {"role": role}
        try:
            plan.probe_of[column].score(column, plan.sets, scorer, **asked_of)
        except NotMeasured as reason:
            if unmeasured is not None:
                unmeasured[condition, column] = str(reason)


def _sample(plan: Plan, scorer: Scorer, condition: str, most: int) -> None:
    with suppress(NotMeasured):
        said(plan.sets, scorer, role="", condition=condition, hashed=str, most=most)
