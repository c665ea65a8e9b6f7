"""No retain term: nothing holds the rest of the model.

    loss = 0
Kept as a baseline: with gradient_ascent or npo it shows what a collapse looks like to a careless audit.

Source: the GA and NPO rows of MUSE, arXiv:2407.06460.  Checked against: alpha = 0 with any other retain term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class NoRetain:
    """No settings."""

    needs: ClassVar[tuple[str, ...]] = ()
    denominator: ClassVar[str] = "none"
