"""How long an audit may take: what is not begun in time is told as such, and never counts as passed.

Source: this project.  Checked against: a clock that is moved by hand; a table that is cut short is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from letheon.errors import NotMeasured


class BudgetExhausted(NotMeasured):
    """There was no time left to begin this."""


@dataclass
class Budget:
    """Seconds that conditions may be begun in, from the first question on; None: no end."""

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    _began: float | None = field(default=None, init=False)

    def check(self, condition: str) -> None:
        """Called before a condition is begun; the first call starts the clock.

        Every model is asked as it is: without that, nothing else of it could be read.

        Raises:
            BudgetExhausted: the time is over.
        """
        now = self.clock()
        if self._began is None:
            self._began = now
        if self.seconds is not None and condition != "as_is" and now - self._began > self.seconds:
            raise BudgetExhausted(f"budget exhausted: the audit was given {self.seconds:g} s")
