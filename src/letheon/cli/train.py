"""Fine-tune a model folder: a model, or the reference that never saw the forget data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome, quoted
from letheon.cli.verb import verb_app


def _done(result: Any, given: Mapping[str, Any]) -> Outcome:
    folder = quoted(result.folder)
    if given.get("without"):
        following = f"letheon audit FORGOTTEN_MODEL --reference {folder}"
    else:
        following = f"letheon forget {folder} --forget forget.jsonl --retain retain.jsonl"
    return Outcome(result, [f"trained for {result.steps} steps: {folder}"], next=following)


app = verb_app(
    "train",
    summary="Fine-tune a model folder: a model, or the reference that never saw the forget data.",
    main=("epochs", "batch_size", "learning_rate", "seed", "columns"),
    examples=(
        "letheon train BASE --data train.jsonl --epochs 5 --learning-rate 1e-4 --out runs/target",
        "letheon train BASE --data train.jsonl --without forget.jsonl --out runs/reference",
    ),
    done=_done,
)
