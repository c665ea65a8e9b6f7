"""Greedy answers that hang by a hair: listed apart, since another machine may give another.

    margin of an answer = smallest of  x_(1) - x_(2)  over its tokens, x_(1) >= x_(2) the two largest logits in nats
A sum in another order (other threads, batch sizes, processors) moves a logit by some 1e-6; below `MARGIN` it may turn
the arg-max, and with it the rest of the answer. What is counted: questions whose exact answer is told by teacher
forcing, up to the first token that is wrong, where the greedy answer leaves the true one; and answers and continuations
that were generated, up to their end. No score is changed by it.

Source: this project.  Checked against: a slow float64 loop, generation step by step, a planted tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MARGIN = 1e-4
"""Nats."""


@dataclass(frozen=True)
class NearTies:
    """The model under audit, row by row."""

    items: dict[str, dict[str, None]] = field(default_factory=dict)
    """Row -> items whose answer had a smaller margin; those of some other row may have been asked as well."""

    def note(self, row: str, items: Iterable[str]) -> None:
        """Add the near ties of what has been asked under a row."""
        if found := dict.fromkeys(items):
            self.items.setdefault(row, {}).update(found)

    def as_plain(self, named: Callable[[str], str]) -> dict[str, Any]:
        """For audit.json: `named` gives an item the name that a file may hold."""
        rows = [{"condition": row, "items": sorted(map(named, items))} for row, items in self.items.items()]
        return {"margin": MARGIN, "rows": rows}
