"""What `letheon audit` will need: what its probes ask is written down, then the largest of it is rehearsed.

The probes run as they are, on a scorer that notes what it is asked and answers nothing. Then the models are opened as
an audit opens them, and asked the largest scoring batches and the largest generation batch.

    peak = the largest of   subject + rounding of its largest layer
                            subject + shipped model + copy of the subject's weights + what is asked
                            subject + original or reference + what is asked

Source: this project.  Checked against: the measured peak of real audits, with each kind of control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from letheon.audits.asked import Asked
from letheon.audits.attacked import Attack, walks
from letheon.audits.attacker import Attacker, Target
from letheon.audits.halves import parts
from letheon.audits.plan import SHIPPED, Plan
from letheon.audits.request import Request
from letheon.audits.samples import MOST, most_at, said
from letheon.audits.scorer import Scorer
from letheon.audits.wordings import Wording
from letheon.data.batches import batch_tokens_on
from letheon.data.encode import Encoder, Example
from letheon.errors import BadInput, NotMeasured
from letheon.lowbit.matrices import decoder_matrices
from letheon.numerics.grids import fake_quantize
from letheon.recipes.estimates import Estimate, Questions, ask, by_part, open_rehearsed, questions, time_of
from letheon.recipes.rehearsal import Rehearsal, Work
from letheon.training.losses import Body
from letheon.training.prepare import Opened
from letheon.training.scoring import ExampleScores


def of_audit(request: Request, encoder: Encoder, plan: Plan) -> Estimate:
    """Of `letheon audit`, from a checked request and its plan. What is kept from an earlier audit takes less."""
    folders, device = request.folders, request.device
    notes = _notes(plan, encoder)
    scored = [questions(plan.sets[name].examples, encoder, device, times=times) for name, times in notes.scored.items()]
    grids = [condition.grid for condition in plan.conditions.values() if hasattr(condition, "grid")]
    with Rehearsal(device) as rehearsal:
        subject = open_rehearsed(rehearsal, folders["model"], encoder)
        _round(subject.model, grids)
        if SHIPPED in folders:
            shipped = rehearsal.model(folders["model"])  # the same architecture, read as float32
            kept = [parameter.detach().clone() for parameter in subject.model.parameters()]
            _ask(subject, rehearsal, scored, notes)
            del shipped, kept
        other = open_rehearsed(rehearsal, folders["reference" if "reference" in folders else "original"], encoder)
        work = _ask(other, rehearsal, scored, notes)
        if "reference" in folders:
            _round(other.model, grids)
        models = 2 if "reference" in folders else 1
        for walk in walks(plan.conditions):
            work += _attack(walk, other, rehearsal, plan) * models
    return Estimate(by_part(rehearsal), time_of(work, batch_tokens_on(device), subject.model, device))


# --- what is asked


@dataclass
class _Notes:
    """What an audit asks."""

    scored: Counter[str] = field(default_factory=Counter)
    """Set -> how often all of it is scored."""
    generated: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """(prompts, tokens of the longest, new tokens) of a generation batch -> how often there is one."""


@dataclass
class _Noting:
    """Stands for a model that generates."""

    notes: _Notes
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

    def __init__(self, notes: _Notes, encoder: Encoder) -> None:
        model = _Noting(notes)
        super().__init__(model, Body(model), encoder, "cpu")
        self.notes = notes
        self.seen: set[str] = set()

    def scores(self, asked: Asked, *, moments: bool = False) -> ExampleScores:
        """Note the set, once; the scores are zeros."""
        self._note(asked)
        zeros = [np.zeros(len(example.answer_ids)) for example in asked.examples]
        pairs = [np.zeros((2, len(values))) for values in zeros]
        return ExampleScores(zeros, [values > 0 for values in zeros], pairs)

    def first_log_probs(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Note the set; zeros."""
        self._note(asked)
        return np.zeros((len(asked), len(tokens)))

    def gradient_norms(self, asked: Asked) -> NDArray[np.float64]:
        """Note the set three times over: a backward pass is two forward ones. Its memory is not noted."""
        self.notes.scored[asked.name] += 3
        return np.zeros(len(asked))

    def _note(self, asked: Asked) -> None:
        if asked.name not in self.seen:
            self.seen.add(asked.name)
            self.notes.scored[asked.name] += 1


def _notes(plan: Plan, encoder: Encoder) -> _Notes:
    """Everything that the subject, its control and the original are asked."""
    notes = _Notes()
    for name, condition in plan.conditions.items():
        scorer = _NotingScorer(notes, encoder)
        if isinstance(condition, Wording) or (isinstance(condition, Attack) and condition.folds):
            # Each part is asked once, which is everything about the forget set; of the control as well. What other
            # words are longer is not counted.
            roles = ["forget", "forget" if plan.control.kind == "reference" else plan.control.kind]
            for role in roles:
                _ask_row(plan, _NotingScorer(notes, encoder), name, role=role, about=("forget",))
            continue
        _ask_row(plan, scorer, name)
        if plan.control.kind != "reference":
            _ask_row(plan, scorer, name, role=plan.control.kind)
        elif name != SHIPPED:
            _ask_row(plan, _NotingScorer(notes, encoder), name)
        if most := most_at(name, plan.generated):
            _sample(plan, scorer, name, most)
    original = _NotingScorer(notes, encoder)
    _ask_row(plan, original, "as_is")
    _sample(plan, original, "as_is", MOST)
    return notes


def _ask_row(
    plan: Plan,
    scorer: Scorer,
    condition: str,
    *,
    role: str = "forget",
    about: Sequence[str] = ("forget", "membership", "utility"),
) -> None:
    """All columns of a condition, as the audit's tables ask for them."""
    for column, kind in plan.columns.items():
        if not plan.is_made(column, condition) or kind.about not in about or (role != "forget" != kind.about):
            continue
        asked_of = {} if kind.about == "membership" else {"role": role}
        with suppress(NotMeasured):
            plan.probe_of[column].score(column, plan.sets, scorer, **asked_of)


def _sample(plan: Plan, scorer: Scorer, condition: str, most: int) -> None:
    with suppress(NotMeasured):
        said(plan.sets, scorer, role="", condition=condition, hashed=str, most=most)


# --- what that takes


@torch.no_grad()
def _round(model: Any, grids: list[Any]) -> None:
    """A quantized condition rounds layer by layer, in place."""
    with suppress(BadInput):  # such a condition is not measured
        largest = max((matrix.weight for matrix in decoder_matrices(model).values()), key=lambda one: one.numel())
        for grid in grids:
            with suppress(BadInput):  # nor such a one
                fake_quantize(largest.contiguous(), grid)


def _ask(opened: Opened, rehearsal: Rehearsal, scored: list[Questions], notes: _Notes) -> Work:
    work = ask(opened, rehearsal, scored)
    if not notes.generated:
        return work

    def tokens(batch: tuple[int, int, int]) -> int:
        count, width, new = batch
        return count * (width + new)

    largest = max(notes.generated, key=tokens)
    most_prompts = max(notes.generated, key=lambda batch: batch[0] * batch[1])
    for batch in dict.fromkeys((most_prompts, largest)):
        made = _generate(opened, rehearsal, *batch)
    share = sum(tokens(batch) * times for batch, times in notes.generated.items()) / tokens(largest)
    return work + made * share


_LONGEST = 64
"""Records that a rehearsed attack draws its batches from: the longest ones."""


def _attack(walk: Mapping[str, Any], opened: Opened, rehearsal: Rehearsal, plan: Plan) -> Work:
    """Two steps of an attack on the largest records, through the real loop; the work of all its steps, every way round.

    An attack that takes no steps reads its records a few times: little beside what is asked, and not counted.
    """
    attack: Any = next(iter(walk.values()))
    if not isinstance(attack, Attack) or attack.along != "steps":
        return Work()
    with suppress(NotMeasured):
        attacker = parts(plan.sets, attack.folds)[0].attacker
        before = [parameter.detach().clone() for parameter in opened.model.parameters()]
        rehearsal.bytes.label("weights", before)
        rehearsal.start_counting()
        settings: Any = attack
        shorter: Any = replace(settings, steps=(2,))
        target = Target(opened.model, opened.body, opened.encoder, opened.device)
        shorter.walk(target, _with_longest(attacker), _go_on)
        del before
        most = max(int(condition.steps[0]) for condition in walk.values())
        return rehearsal.work * (most * max(attack.folds, 1) / 2)  # two steps were rehearsed
    return Work()


def _with_longest(attacker: Attacker) -> Attacker:
    """The same attacker with a few records of each kind, the longest ones."""

    def longest(read: Callable[[], Sequence[Example]]) -> tuple[Example, ...]:
        with suppress(NotMeasured):
            return tuple(sorted(read(), key=lambda example: len(example.ids))[-_LONGEST:])
        return ()

    kept = {role: longest(partial(attacker.kept, role)) for role in ("retain", "general")}
    return Attacker(longest(lambda: attacker.learned), kept)


def _go_on(step: int) -> None:
    """What the model answers between the steps is counted with everything else that is asked."""


@torch.no_grad()
def _generate(opened: Opened, rehearsal: Rehearsal, count: int, width: int, new: int) -> Work:
    """The first and the last token of greedy answers, with the cache as it is then; the work of all tokens."""
    model, device = opened.model, opened.device
    rehearsal.start_counting()
    ids = torch.zeros(count, width, dtype=torch.long, device=device)
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
    first = rehearsal.work
    cache = outputs.past_key_values
    for number, layer in enumerate(cache.layers):
        batch, heads, _, size = layer.keys.shape
        more = layer.keys.new_zeros(batch, heads, max(new - 2, 0), size)
        cache.update(more, more, number)
    rehearsal.start_counting()
    mask = torch.ones(count, width + max(new - 1, 1), dtype=torch.long, device=device)
    model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return first + rehearsal.work * (new - 1)
