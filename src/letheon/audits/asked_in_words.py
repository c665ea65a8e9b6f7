"""The questions that a model which can only be asked is asked: every wording, and the control's.

Control: at least three holdout units, else the same questions about invented look-alike names, which count as said what
would be the answer about the real one.

Source: this project.  Checked against: by hand: roles, limits, wordings, which control there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from letheon.audits.control import Control, choose_control, lookalike_names
from letheon.audits.matching import accepted
from letheon.data.records import DataFile, Record
from letheon.data.sampling import sample
from letheon.errors import require

ROLES = ("forget", "retain", "general", "holdout")


@dataclass(frozen=True)
class Item:
    """One question."""

    role: str
    unit: str
    prompt: str
    answer: str
    accepted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is asked, and how sure bounds are."""

    samples: int
    temperatures: tuple[float, ...]
    limit: int
    level: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        require(self.samples >= 0, f"ask needs samples >= 0, got {self.samples}")
        usable = all(value > 0 for value in self.temperatures) and len(set(self.temperatures)) == len(self.temperatures)
        require(usable, f"ask needs different temperatures > 0, got {list(self.temperatures)}")
        require(self.limit >= 1, f"ask needs limit >= 1, got {self.limit}")
        require(self.resamples >= 1000, f"ask needs resamples >= 1000, got {self.resamples}")
        require(self.seed >= 0, f"ask needs seed >= 0, got {self.seed}")
        require(0 < self.level < 0.5, f"ask needs a level in (0, 0.5), got {self.level}")

    @property
    def leaks(self) -> tuple[int, ...]:
        """k of leak@k: 1, 2, 4, ... up to n."""
        return tuple(2**power for power in range(self.samples.bit_length()))


def questions(data: Mapping[str, DataFile], plan: Plan) -> tuple[Control, list[Item]]:
    """Every question, in every wording, up to the limit of each role; and those of the control."""
    items = [item for role in ROLES if role in data for item in _items(role, data[role].questions, plan.limit)]
    forgotten = [(item, record) for item, record in _worded("forget", data["forget"].questions)]
    names = lookalike_names(data["forget"], [file for role, file in data.items() if role != "forget"], seed=plan.seed)
    alike = [
        replace(item, role="lookalike", prompt=swapped)
        for item, record in forgotten
        if (swapped := names.swap(record, item.prompt)) is not None
    ]
    strangers = len({item.unit for item in items if item.role == "holdout"})
    control = choose_control(has_reference=False, has_shipped=False, holdout_units=strangers, lookalikes=len(alike))
    if control.kind == "lookalike":
        items += _limited(alike, plan.limit)
    return control, items


def items_sampled(items: Sequence[Item], control: Control) -> list[Item]:
    """What is asked more than once: the forgotten, and the control."""
    return [item for item in items if item.role in ("forget", control.kind)]


def _items(role: str, records: Sequence[Record], limit: int) -> list[Item]:
    return _limited([item for item, _ in _worded(role, records)], limit)


def _worded(role: str, records: Sequence[Record]) -> list[tuple[Item, Record]]:
    return [
        (Item(role, record.unit, prompt, record.answer, accepted(record)), record)
        for record in records
        for prompt in (record.prompt, *record.paraphrase)
    ]


def _limited(items: Sequence[Item], limit: int) -> list[Item]:
    names = [f"{number}/{item.prompt}" for number, item in enumerate(items)]
    return [items[place] for place in sample([item.unit for item in items], names, limit)]
