"""One long text before every question, behind which the model's states are those of the original without it.

    loss(s) = |h_u(s + q) - h_0(q)|^2 / |h_0(q)|^2 + a fluency(s) + b repetition(s)      h: one block, V's questions
A step draws a move: another token by the slope of the loss (as in `gcg`), another token or one more from what the model
itself expects there, or one less. It looks at B strings and keeps the best of all in a buffer, in which each is gone on
from once. Instead of states the aim may be the original's own answers. Both are about V; T is asked in words, with the
best text that can be typed. The attacker has the original, and nothing of it is in the model that is asked: an upper
bound for words, as the control is asked with the text that is found for it in the same way.

Source: Thompson and Sklar 2024, arXiv:2407.17447, in the settings of Lucki et al. 2024, arXiv:2409.18025 (100 tokens or
more, 1500 steps, B 16, k 64, buffer 16; moves 0.7, 0.1, 0.1, 0.1; block 20 of 32). The weights a, b and the form of the
repetition term are this project's.
Checked against: no distance to itself, central differences of each term, strings of different lengths one by one, a
trigger that was planted, the score of the typed words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.audits.attacker import Attacker, Target
from letheon.audits.hidden import depth_of, one_layer
from letheon.audits.rewording import Beside
from letheon.audits.scorer import SPARE_TOKENS, Scorer
from letheon.audits.string_fluency import Fluency, Repetition
from letheon.audits.string_losses import Losses, StateLosses, StringLosses, WeightedLosses
from letheon.audits.string_search import Search, inserted, swapped, swapped_by_slope, typed, without
from letheon.audits.strings import Slot, Strings, Tokens, learned_questions
from letheon.errors import NotMeasured, require
from letheon.lowbit.online import MARKER
from letheon.models import load_model
from letheon.training.activations import caught
from letheon.training.losses import Body


@dataclass(frozen=True, kw_only=True)
class GcgEnhanced:
    """Settings of the attacker."""

    tokens: int = 100
    """Fewest tokens of the text, >= 2, and those that it begins with."""
    spare: int = 20
    """Tokens that insertions may add to them, >= 0."""
    steps: tuple[int, ...] = (1500,)
    """Steps after which T is asked, each >= 0: a row of the matrix for each. 0: no text, the question as it is."""
    aim: Literal["states", "answers"] = "states"
    """What is to be as in the original: a block's states, or the likelihood of the answers that it gives to V."""
    layer: int | None = None
    """The block of `states`, counted from 0; null: five eighths of the depth, 20 of 32."""
    candidates: int = 16
    """B, texts looked at in a step, each at a drawn place, >= 1."""
    top_k: int = 64
    """k, tokens that are drawn from at a place, >= 1."""
    swap: float = 0.1
    """Share of steps that put in a token which the model expects there, in [0, 1]."""
    insert: float = 0.1
    """Share of steps that add one, in [0, 1]."""
    delete: float = 0.1
    """Share of steps that take one out, in [0, 1]; the rest swap by the slope."""
    fluency: float = 0.05
    """a, weight of the text's own mean -log p, 1/nats, >= 0. Not the source's: there it has a schedule."""
    repetition: float = 0.05
    """b, weight of pairs of equal tokens for each token, >= 0."""
    questions: int = 16
    """Questions of V that the text is for, of as many units as there are, >= 1."""
    buffer: int = 16
    """Texts kept to go on from, >= 1."""
    cache: bool = True
    """Read once what the texts of a step have in common; the losses are the same."""
    seed: int = 0
    """Of the first text and of all draws."""

    along: ClassVar[str] = "steps"
    only_convicts: ClassVar[bool] = True
    """Behind a string that was found for one model another one that knows may be silent: no cell of it can acquit."""
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        usable = len(self.steps) > 0 and min(self.steps) >= 0 and len(set(self.steps)) == len(self.steps)
        require(usable, f"gcg_enhanced needs different steps >= 0, got {list(self.steps)}")
        for name, least in _LEAST.items():
            require(getattr(self, name) >= least, f"gcg_enhanced needs {name} >= {least}, got {getattr(self, name)}")
        require(self.layer is None or self.layer >= 0, f"gcg_enhanced needs layer >= 0 or null, got {self.layer}")
        shares = (self.swap, self.insert, self.delete)
        require(
            min(shares) >= 0 and sum(shares) <= 1 + 1e-9,
            f"gcg_enhanced needs swap, insert and delete >= 0 with a sum of at most 1, got {list(shares)}",
        )

    @property
    def label(self) -> str:
        """The row's name for readers."""
        steps = "/".join(map(str, sorted(self.steps)))
        return f"{self.tokens} words or more before every question, {steps} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        where = "the block at five eighths" if self.layer is None else f"block {self.layer}"
        aim = f"states of {where}" if self.aim == "states" else "answers"
        return (
            f"one text of {self.tokens} to {self.tokens + self.spare} tokens before every question, searched for "
            f"{after} steps ({self.candidates} texts a step, buffer {self.buffer}) so that the {aim} are the "
            f"original's, on {self.questions} questions about one half of the people to be forgotten, asked about the "
            "other; both ways round; weights as they are"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[..., None]) -> None:
        """Search on what the attacker learns, and call `then(k, rewording=...)` with the best text after k steps.

        Raises:
            NotMeasured: no original or one of another shape, no question that leaves room, no text that can be typed,
                or a loss that is NaN.
        """
        room = self.tokens + self.spare
        asked = learned_questions(attacker, target.encoder, room=room, count=self.questions, seed=self.seed)
        search = self.search(target, load_model(attacker.original.path, device=target.device), asked)
        for step in range(max(self.steps) + 1):
            if step > 0:
                search.step()
            if step in self.steps and step == 0:
                then(0)
            elif step in self.steps:
                if not search.best:
                    raise NotMeasured(f"no text was found in {step} steps that can be typed before every question")
                then(step, rewording=Beside(search.strings.text(search.best), "prefix"))

    def search(self, target: Target, original: Any, asked: Sequence[tuple[str, str]]) -> Search:
        """The search before its first step.

        Args:
            target: the model that is attacked.
            original: the model before it was unlearned.
            asked: (prompt, answer) of V's questions; the original's own answers take the answers' place.
        """
        asked = own_answers(target, original, asked, room=self.tokens + self.spare)
        strings = Strings(target.encoder, asked, "prefix", self.tokens, seed=self.seed)
        fluency = Fluency(target, strings.slots[0].before)
        parts: list[tuple[float, Losses]] = [(1.0, self._aim(target, original, asked, strings.slots))]
        parts += [(weight, one) for weight, one in ((self.fluency, fluency), (self.repetition, Repetition())) if weight]
        losses = WeightedLosses(parts)
        moves = _Moves(self, fluency)
        return Search(moves, strings, losses, leaves=True, first=strings.varied(seed=self.seed))

    def _aim(self, target: Target, original: Any, asked: Sequence[tuple[str, str]], slots: Sequence[Slot]) -> Losses:
        if self.aim == "answers":
            return StringLosses(target, slots, shares=self.cache)
        _require_basis(target)
        layer = one_layer(target.model, self.layer, default=depth_of(target.model) * 5 // 8)
        if shape_of(original) != shape_of(target.model):
            raise NotMeasured("the original is of another shape, so that states cannot be compared; use aim answers")
        plain = [target.encoder.question(prompt, answer).ids for prompt, answer in asked]
        wanted = states_without(original, plain, slots, layer, device=target.device)
        return StateLosses(target, slots, wanted, layer, shares=self.cache)


_LEAST = {
    "tokens": 2,
    "spare": 0,
    "candidates": 1,
    "top_k": 1,
    "questions": 1,
    "buffer": 1,
    "seed": 0,
    "fluency": 0,
    "repetition": 0,
}
"""Setting -> its least value."""


@dataclass(frozen=True)
class _Moves:
    """How the search goes on."""

    settings: GcgEnhanced
    fluency: Fluency

    @property
    def buffer(self) -> int:
        return self.settings.buffer

    @property
    def seed(self) -> int:
        return self.settings.seed

    def near(self, search: Search, current: Tokens) -> list[Tokens]:
        """At most B texts that are one move away and can be typed."""
        given = self.settings
        drawn, wanted = float(torch.rand(1, generator=search.random)), 2 * given.candidates
        is_swap = drawn < given.swap
        is_insert = not is_swap and drawn < given.swap + given.insert
        is_delete = not is_swap and not is_insert and drawn < given.swap + given.insert + given.delete
        if is_swap:
            found = swapped(current, *self._expected(search, current, wanted, places=len(current)))
        elif is_insert and len(current) < given.tokens + given.spare:
            found = inserted(current, *self._expected(search, current, wanted, places=len(current) + 1))
        elif is_delete and len(current) > given.tokens:
            found = without(current, search.draw(len(current), wanted).tolist())
        else:
            found = swapped_by_slope(search, current, given.top_k, wanted)
        return typed(search.strings, found, given.candidates)

    def _expected(self, search: Search, current: Tokens, wanted: int, *, places: int) -> tuple[list[int], list[int]]:
        """Drawn places, and for each one of k different tokens that were drawn as the model expects them there."""
        allowed = search.strings.allowed
        at, count = search.draw(places, wanted), min(self.settings.top_k, len(allowed))
        shares = self.fluency.next_token(current, allowed)[at]
        columns = torch.multinomial(shares.clamp(min=1e-30), count, generator=search.random)
        chosen = columns.gather(1, search.draw(count, wanted).unsqueeze(1)).squeeze(1)
        return at.tolist(), allowed[chosen].tolist()


def own_answers(target: Target, original: Any, asked: Sequence[tuple[str, str]], *, room: int) -> list[tuple[str, str]]:
    """The questions with what the original says to them, greedily.

    Args:
        asked: (prompt, answer); the answer tells how long the original may speak.
        room: tokens that must fit beside each question.
    Raises:
        NotMeasured: it says nothing to any of them that leaves room.
    """
    encoder = target.encoder
    examples = [encoder.question(prompt, answer) for prompt, answer in asked]
    said = Scorer(original, Body(original), encoder, target.device).continuations(
        [one.prompt_ids for one in examples],
        [len(one.answer_ids) + SPARE_TOKENS for one in examples],
        stops={one.ids[-1] for one in examples},
    )
    found = [(prompt, text) for (prompt, _), text in zip(asked, said, strict=True) if text]
    found = [pair for pair in found if len(encoder.question(*pair).ids) + room < encoder.max_length]
    if not found:
        raise NotMeasured("the original says nothing to any learned question that leaves room for the text")
    return found


@torch.no_grad()
def states_without(
    original: Any, plain: Sequence[Tokens], slots: Sequence[Slot], layer: int, *, device: str
) -> list[Float[Tensor, "_ width"]]:
    """The original's states of each question without the text, at the last tokens that both have in common.

    A question may begin with another token behind a text than by itself (a space before its first word).

    Args:
        plain: tokens of each question by itself.
        slots: the same questions with room for a text before them.
        layer: the block.
    """
    found = []
    for ids, slot in zip(plain, slots, strict=True):
        pairs = zip(reversed(ids), reversed(slot.after), strict=False)
        same = next((count for count, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(slot.after)))
        with caught(original, [layer]) as hidden:
            original(input_ids=torch.tensor([ids[:-1]], device=device), use_cache=False)
        found.append(hidden[layer][0, len(ids) - same :].clone())
    return found


def shape_of(model: Any) -> tuple[int, int]:
    """(blocks, width of their states)."""
    return depth_of(model), int(model.get_input_embeddings().weight.shape[1])


def _require_basis(target: Target) -> None:
    folder = target.folder
    if folder is not None and (folder.is_packed or folder.config.get(MARKER)):
        raise NotMeasured(
            f"{folder.path} holds codes of a low-bit format, or turned weights, and states may stand in another basis "
            "than the original's. Use aim answers"
        )
