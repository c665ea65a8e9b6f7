"""The answers read off hidden states by a linear map, trained on half of what was to be forgotten and what is retained.

    x = h_l at the prompt's last token, standardised;  y = one column for each answer that was trained on, centred
    W = argmin |x W - y|^2 + lambda |W|^2;  the answer is the largest of x W           (dual: (X X^T + lambda I)^-1 Y)
The block l and lambda are those that read most of V's units when these are left out in turn; then T is asked. The
weights stay as they are. A probe may learn the task itself, so it is trained a second time on shuffled labels: what
that reads is chance, and the difference between the rows is its selectivity. The control is probed in the same way. An
answer that nobody else has is not a choice, and counts as not known.

Source: Patil et al. 2023, arXiv:2309.17410; selectivity, Hewitt and Liang 2019, arXiv:1909.03368.
Checked against: ridge regression in its primal form, a code that was planted in a model's states, shuffled labels
and a model without the code at chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from letheon.audits.attacker import Attacker, Target
from letheon.audits.hidden import depth_of, read_states
from letheon.audits.readers import Choices, Reader, Tokens
from letheon.data.encode import Example
from letheon.errors import NotMeasured, require

Places = Int[NDArray[np.int64], " some"]


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What the probe is trained on."""

    labels: tuple[Literal["answers", "shuffled"], ...] = ("answers", "shuffled")
    """A row of the matrix for each: the answers, and the same ones dealt out anew to all that is trained on."""
    on: Literal["forget", "both"] = "both"
    """V alone, or V and the retained questions."""
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Values of lambda that are tried, each > 0, in units of the mean of |x|^2."""
    folds_of_units: int = 4
    """Into how many parts V's units are cut to choose block and penalty, >= 2; fewer where there are fewer units."""
    seed: int = 0
    """Of the shuffled labels."""

    along: ClassVar[str] = "labels"
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(
            len(self.labels) > 0 and len(set(self.labels)) == len(self.labels),
            f"linear_probe needs different labels, got {list(self.labels)}",
        )
        require(
            len(self.penalties) > 0 and all(0 < one < float("inf") for one in self.penalties),
            f"linear_probe needs penalties > 0, got {list(self.penalties)}",
        )
        require(self.folds_of_units >= 2, f"linear_probe needs folds_of_units >= 2, got {self.folds_of_units}")
        require(self.seed >= 0, f"linear_probe needs seed >= 0, got {self.seed}")

    @property
    def _trained_on(self) -> str:
        return " and ".join(
            {"answers": "the answers", "shuffled": "shuffled answers"}[one] for one in sorted(self.labels)
        )

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"linear probe trained on {self._trained_on}"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        rest = " and on retained questions" if self.on == "both" else ""
        return (
            f"answers read off hidden states by ridge regression on {self._trained_on} of one half of the people to be "
            f"forgotten{rest}, asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[str, Reader], None]) -> None:
        """Train the probe, and call `then("answers", reader)` and so on.

        Raises:
            NotMeasured: no questions to learn from, fewer than two units or two answers, or states that are not finite.
        """
        learned = attacker.learned
        if learned[0].labelled_from == 1:
            raise NotMeasured("a probe needs questions to learn from; the attacker's half holds texts alone")
        kept = [one for one in attacker.kept("retain") if one.labelled_from > 1] if self.on == "both" else []
        examples, layers = [*learned, *kept], list(range(depth_of(target.model)))
        states = {at: found.double().cpu().numpy() for at, found in read_states(target, examples, layers).items()}
        answers = list(dict.fromkeys(example.answer_ids for example in examples))
        if len(answers) < 2:
            raise NotMeasured("a probe needs two answers to tell apart")
        truth = np.array([answers.index(example.answer_ids) for example in examples])
        left_out = _parts(attacker.units, self.folds_of_units, others=len(kept))
        for labels in sorted(self.labels):
            dealt = truth if labels == "answers" else np.random.default_rng(self.seed).permutation(truth)
            layer, penalty = best(states, dealt, len(answers), left_out, self.penalties)
            probe = Ridge(states[layer], dealt, len(answers), penalty)

            def reader(prompts: Sequence[Tokens], probe: Ridge = probe, layer: int = layer) -> Choices:
                asked = [Example((*prompt, target.encoder.eos), len(prompt)) for prompt in prompts]
                found = read_states(target, asked, [layer])[layer]
                return Choices(answers, probe.scores(found.double().cpu().numpy()))

            then(labels, reader)


def _parts(units: Sequence[str], count: int, *, others: int) -> list[NDArray[np.int64]]:
    """Places of V's examples in each part, cut by unit; what is retained is in none, and always trained on."""
    distinct = list(dict.fromkeys(units))
    if len(distinct) < 2:
        raise NotMeasured(f"a probe needs two learned units to choose its block by; there are {len(distinct)}")
    count = min(count, len(distinct))
    part_of = {unit: place % count for place, unit in enumerate(distinct)}
    of_each = np.array([part_of[unit] for unit in units] + [-1] * others)
    return [np.flatnonzero(of_each == part) for part in range(count)]


def best(
    states: dict[int, NDArray[np.float64]],
    truth: Places,
    answers: int,
    left_out: Sequence[NDArray[np.int64]],
    penalties: Sequence[float],
) -> tuple[int, float]:
    """Block and penalty that read most of what is left out in turn; of equal ones the first."""
    found: dict[tuple[int, float], int] = {}
    for layer, rows in states.items():
        for penalty in penalties:
            hits = 0
            for asked in left_out:
                kept = np.setdiff1d(np.arange(len(rows)), asked)
                said = Ridge(rows[kept], truth[kept], answers, penalty).scores(rows[asked]).argmax(1)
                hits += int((said == truth[asked]).sum())
            found[layer, penalty] = hits
    return max(found, key=found.__getitem__)


class Ridge:
    """Ridge regression onto one column an answer, in its dual form.

    Args:
        rows: (examples, width).
        truth: (examples,) number of the answer.
        answers: how many there are.
        penalty: lambda, in units of the mean of |x|^2.
    """

    def __init__(
        self, rows: Float[NDArray[np.float64], "some width"], truth: Places, answers: int, penalty: float
    ) -> None:
        self.mean, self.scale = rows.mean(0), rows.std(0)
        self.scale[self.scale == 0] = 1.0
        self.rows = (rows - self.mean) / self.scale
        targets = np.eye(answers)[truth]
        self.offset = targets.mean(0)
        products = self.rows @ self.rows.T
        size = max(float(products.trace()) / len(rows), 1e-12)
        self.dual = np.linalg.solve(products + penalty * size * np.eye(len(rows)), targets - self.offset)

    def scores(self, rows: Float[NDArray[np.float64], "others width"]) -> Float[NDArray[np.float64], "others answers"]:
        """The higher, the likelier."""
        found: NDArray[np.float64] = ((rows - self.mean) / self.scale) @ self.rows.T @ self.dual + self.offset
        return found
