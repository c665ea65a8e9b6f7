"""What `letheon audit` will need: what its probes ask is written down (`audit_notes`), the largest of it is rehearsed.

The models are opened as an audit opens them, and asked the largest scoring batches and the largest generation batch.
An attack in steps takes two of them through the real loop. A search for a string of tokens is counted instead:

    tokens a step = q (B ((n + 1) / 2 + r) + (p + n) + 3 (p + n + r))
    q questions with p tokens to the end of the prompt and r behind it, B strings of n tokens, each read from where it
    differs; then what they have in common, and a forward and a backward pass for the slope

    peak = the largest of   subject + rounding of its largest layer
                            subject + shipped model + copy of the subject's weights + what is asked
                            subject + original or reference + what is asked

Source: this project.  Checked against: the measured peak of real audits, with each kind of control; tokens that a real
search reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from letheon.audits.attacked import Attack, walks
from letheon.audits.attacker import Attacker, Target
from letheon.audits.halves import parts
from letheon.audits.plan import SHIPPED, Plan
from letheon.audits.request import Request
from letheon.audits.wordings import silencing
from letheon.data.batches import batch_tokens_on
from letheon.data.encode import Encoder, Example
from letheon.errors import BadInput, NotMeasured
from letheon.lowbit.matrices import decoder_matrices
from letheon.numerics.grids import fake_quantize
from letheon.recipes.audit_notes import Notes
from letheon.recipes.estimates import Estimate, Questions, ask, by_part, open_rehearsed, questions, time_of
from letheon.recipes.rehearsal import Rehearsal, Work
from letheon.training.prepare import Opened


def of_audit(request: Request, encoder: Encoder, plan: Plan, notes: Notes) -> Estimate:
    """Of `letheon audit`, from a checked request, its plan and what it asks. What an earlier one kept takes less."""
    folders, device = request.folders, request.device
    scored = [questions(plan.sets[name].examples, encoder, device, times=times) for name, times in notes.scored.items()]
    scored.append(questions(notes.worded, encoder, device))
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
        silent = silencing(plan.conditions)
        for walk in walks(plan.conditions):
            work += _attack(walk, other, rehearsal, plan) * (models + any(row in silent for row in walk))
    return Estimate(by_part(rehearsal), time_of(work, batch_tokens_on(device), subject.model, device))


# --- what that takes


@torch.no_grad()
def _round(model: Any, grids: list[Any]) -> None:
    """A quantized condition rounds layer by layer, in place."""
    with suppress(BadInput):  # such a condition is not measured
        largest = max((matrix.weight for matrix in decoder_matrices(model).values()), key=lambda one: one.numel())
        for grid in grids:
            with suppress(BadInput):  # nor such a one
                fake_quantize(largest.contiguous(), grid)


def _ask(opened: Opened, rehearsal: Rehearsal, scored: list[Questions], notes: Notes) -> Work:
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
    most = max(int(condition.steps[0]) for condition in walk.values())
    with suppress(NotMeasured):
        attacker = parts(plan.sets, attack.folds)[0].attacker
        if is_search(attack):
            return _per_token(opened, rehearsal, attacker) * (most * attack.folds * tokens_a_step(attack, attacker))
        before = [parameter.detach().clone() for parameter in opened.model.parameters()]
        rehearsal.bytes.label("weights", before)
        rehearsal.start_counting()
        settings: Any = attack
        shorter: Any = replace(settings, steps=(2,))
        target = Target(opened.model, opened.body, opened.encoder, opened.device)
        shorter.walk(target, _with_longest(attacker), _go_on)
        del before
        return rehearsal.work * (most * max(attack.folds, 1) / 2)  # two steps were rehearsed
    return Work()


def is_search(attack: Any) -> bool:
    """Whether an attack looks at so many `candidates` of so many `tokens` for so many `questions` in each step."""
    return all(isinstance(getattr(attack, name, None), int) for name in ("candidates", "tokens", "questions"))


def tokens_a_step(attack: Any, attacker: Attacker) -> float:
    """Tokens that a search reads in a step, a backward pass counted as two forward ones."""
    lengths = [(len(one.prompt_ids), len(one.ids) - 1 - len(one.prompt_ids)) for one in attacker.learned]
    prompt, answer = (sum(each) / len(lengths) for each in zip(*lengths, strict=True))
    n, whole = attack.tokens, prompt + attack.tokens + answer
    behind = answer + (prompt if getattr(attack, "place", "suffix") == "prefix" else 0)
    shared = whole - behind
    read = attack.candidates * ((n + 1) / 2 + behind)
    return float(min(attack.questions, len(lengths)) * (read + shared + 3 * whole))


@torch.no_grad()
def _per_token(opened: Opened, rehearsal: Rehearsal, attacker: Attacker) -> Work:
    """Of what an attacker reads, in one of the batches that an audit reads."""
    batch = questions(attacker.learned, opened.encoder, opened.device).batches[-1]
    return ask(opened, rehearsal, [Questions([batch], 1.0)]) * (1 / batch.ids.numel())


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
