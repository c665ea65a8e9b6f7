"""Ask a model everything that was to be forgotten, as it is and rounded, and give a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome
from letheon.cli.judged import judged
from letheon.cli.verb import verb_app


def _done(result: Any, given: Mapping[str, Any]) -> Outcome:
    return judged(result)


app = verb_app(
    "audit",
    summary="Ask a model everything that was to be forgotten, as it is and rounded, and give a verdict. After "
    "`letheon forget` the original and the data are read from the run's record.",
    main=("protocol", "seed", "resamples", "columns"),
    examples=(
        "letheon audit runs/mine/1-forget --reference runs/reference/1-train",
        "letheon audit MODEL --original ORIGINAL --forget f.jsonl --retain r.jsonl --holdout h.jsonl",
    ),
    done=_done,
)
