"""Make a model forget a set of records, and keep another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome, quoted
from letheon.cli.verb import verb_app


def _done(result: Any, given: Mapping[str, Any]) -> Outcome:
    folder = quoted(result.folder)
    said = f"stopped after {result.steps} steps, {result.reason}: {folder}"
    return Outcome(result, [said], next=f"letheon audit {folder}")


app = verb_app(
    "forget",
    summary="Make a model forget a set of records, and keep another.",
    main=("learning_rate", "epochs", "steps", "batch_size", "seed", "columns"),
    examples=(
        "letheon forget MODEL --forget forget.jsonl --retain retain.jsonl --out runs/mine",
        "letheon forget MODEL --forget f.jsonl --retain r.jsonl --method npo --method.beta 0.5 --retain-term klr",
    ),
    done=_done,
)
