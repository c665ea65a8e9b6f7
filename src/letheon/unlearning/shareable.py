"""Which choices several processes can make together, asked before anything is loaded.

Each process holds a share of every weight, so a choice that looks at whole weights would see a part of them. A method
says of itself that it `is_shareable`, and then a test shows that two processes give what one gives; one that does not
is refused by name. Forget and retain terms see whole records only, and a rate sees losses of whole batches: they need
not say it, unless a term looks inside.

Source: this project.  Checked against: each refused choice, all of them at once; two processes on every allowed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.errors import BadInput
from letheon.methods import name_of
from letheon.runs.environment import process_count
from letheon.unlearning.layers import looks_inside

OF_WEIGHTS = ("balance", "smooth", "scope")
"""Settings whose methods work on weights or their gradients."""
OF_RECORDS = ("method", "retain_term")


def check_shareable(methods: Mapping[str, Any], *, through: str | None, weights: str) -> None:
    """Raise BadInput with every choice that several processes cannot make; a process of its own can make all.

    Args:
        methods: setting -> method; one that could not be built is absent, and nothing is said of it.
        through: the grid that forward passes see.
        weights: how the model is asked to be held in memory; float32 copies of shares in a half precision are refused.
    """
    count = process_count()
    if count == 1:
        return
    found = [
        f"{setting} {name_of(methods[setting])!r}"
        for setting in OF_WEIGHTS
        if setting in methods and not getattr(methods[setting], "is_shareable", False)
    ]
    found += [
        f"{setting.replace('_', ' ')} {name_of(methods[setting])!r}"
        for setting in OF_RECORDS
        if setting in methods and looks_inside(methods[setting])
    ]
    found += [] if through is None else [f"through {through!r}"]
    found += [f"weights {weights!r}"] if weights == "stored" else []
    if found:
        raise BadInput(
            [
                f"{what} is not known to give in {count} processes what it gives in one: each holds a share of every "
                "weight. Run it without torchrun, or choose another"
                for what in found
            ]
        )
