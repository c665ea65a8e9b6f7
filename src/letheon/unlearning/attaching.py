"""What a scope does to a model before its first step and after its last: beside choosing weights, it may add some.

A scope that adds weights has `attach(model, seed=)` and `detach(model, original=)`; the others leave the model as it
is. Attaching comes before anything is asked and before a grid is put between weights and forward pass; detaching comes
before saving.

Source: this project.  Checked against: every scope, with and without weights of its own; patterns that fit nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from letheon.blueprint import make_blueprint
from letheon.errors import require
from letheon.models import Exact, ModelFolder, as_it_is

Saver = Callable[[Path], None]
"""Writes something more into a model folder."""


def attach(scope: Any, model: Any, *, seed: int) -> None:
    """Let a scope add its weights."""
    if hasattr(scope, "attach"):
        scope.attach(model, seed=seed)


def detach(scope: Any, model: Any, *, original: Path) -> tuple[Saver | None, Exact]:
    """Let a scope put its weights where they belong; what is to be saved beside the model, if anything, and what a
    model in a half precision could not hold.
    """
    if not hasattr(scope, "detach"):
        return None, as_it_is
    kept, exact = scope.detach(model, original=original)
    return None if kept is None else kept.save, exact


def check_scope(scope: Any, folder: ModelFolder, *, is_rotated: bool = False) -> None:
    """Raise BadInput, before a weight is loaded, where a scope names what the model does not have.

    `is_rotated`: training happens in another basis than the folder's, where a change kept apart would not fit it.
    """
    require(
        not is_rotated or getattr(scope, "merge", True),
        "a change that is kept apart (--scope.merge false) would be one of the rotated weights, which the original "
        "has not. Use --scope.merge true, or --rotation none",
    )
    model = make_blueprint(folder.path)
    # A scope of the user's own may look at values, which there are none of yet: it is asked later.
    with suppress(RuntimeError, NotImplementedError):
        (scope.layers if hasattr(scope, "attach") else scope.select)(model)
